"""The parts a fresh machine lacks: a Valkey server and a model that speaks Ollama's API."""
