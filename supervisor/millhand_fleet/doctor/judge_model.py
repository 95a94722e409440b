"""What is wrong with the model and its server: pure, from their facts."""

from collections.abc import Iterator

from millhand.config import guess
from millhand_fleet.doctor.facts import ModelFacts
from millhand_fleet.doctor.finding import Finding, Judgement, error, note, ok, warning
from millhand_fleet.doctor.server_versions import parsed

SCHEMA_SINCE = (0, 5)  # before it `format` took no JSON Schema (release notes of Ollama 0.5.0)
SHORT_LEASE_FACTOR = 3.0  # beats a lease, and each may take as long as a command of Redis
EXPIRES_SOON_S = 3600.0
DIGEST_CHARS = 12


def answers(facts: ModelFacts) -> Iterator[Finding]:
    """Whether it is there at all."""
    if facts.error:
        embedded = "start the fleet with `worker-ctl up`; if it runs, see its log"
        remedy = embedded if facts.is_embedded else "start it (`ollama serve`), or change model.url"
        yield error("answers", f"{facts.url}: {facts.error}", remedy)


def asleep(facts: ModelFacts) -> Iterator[Finding]:
    """Whether the embedded one could be started, where none runs."""
    if facts.fault:
        yield error("embedded", *facts.fault)
    elif facts.is_asleep:
        yield note("embedded", "starts and stops with the fleet, which does not run: nothing to ask", "worker-ctl up")


def server(facts: ModelFacts) -> Iterator[Finding]:
    """Whether it is new enough, or not Ollama at all."""
    if facts.is_embedded:
        yield note("server", f"the embedded model at {facts.url}: it shows the machinery, not what a model can do")
    elif not facts.version:
        yield note("server", f"{facts.url} does not tell a version at /api/version: it may be a proxy")
    elif parsed(facts.version) < SCHEMA_SINCE:
        yield error("server", f"Ollama {facts.version} takes no JSON schema in `format`", "upgrade Ollama")
    else:
        yield ok("server", f"Ollama {facts.version} at {facts.url}")


def present(facts: ModelFacts) -> Iterator[Finding]:
    """Whether the model has been pulled, and which weights it has."""
    if facts.digest is not None:
        yield ok("model", f"{facts.name}, digest {facts.digest[:DIGEST_CHARS] or 'not told'}")
        return
    near = guess(facts.name, facts.listed)
    meant = f"; or did you mean {near}? set model.name" if near else ""
    yield error("model", f"there is no model {facts.name!r}", f"ollama pull {facts.name}{meant}")


def in_memory(facts: ModelFacts) -> Iterator[Finding]:
    """Whether it is loaded, and for how long."""
    loaded = facts.loaded
    if facts.digest is None:
        return
    if loaded is None:
        yield note(
            "loaded", "not in memory: the first call waits until it is",
            "" if facts.keep_alive else 'set model.keep_alive, e.g. "30m", if it is unloaded too soon',
        )  # fmt: skip
    elif loaded.expires_s is not None and loaded.expires_s < EXPIRES_SOON_S and not facts.keep_alive:
        yield ok("loaded", f"in memory, and unloaded after {loaded.expires_s / 60:.0f} min of silence")
    else:
        yield ok("loaded", "in memory")
    if facts.others_loaded:
        yield note("loaded", f"other models are in memory too: {', '.join(facts.others_loaded)}; they share its room")


def on_gpu(facts: ModelFacts) -> Iterator[Finding]:
    """Whether all of it is on the GPU."""
    loaded = facts.loaded
    if loaded is None or facts.is_embedded or not loaded.size:
        return
    share = loaded.size_vram / loaded.size
    smaller = "free GPU memory, lower model.num_ctx or OLLAMA_NUM_PARALLEL, or take a smaller or more quantised model"
    if loaded.size_vram == loaded.size:
        yield ok("GPU", f"all of it is on the GPU ({loaded.size / 1e9:.1f} GB)")
    elif loaded.size_vram:
        yield warning(
            "GPU", f"only {share:.0%} of it is on the GPU: the rest makes each call several times slower", smaller
        )
    else:
        yield warning("GPU", "none of it is on a GPU", f"see Ollama's log for why it found none; {smaller}")


def context(facts: ModelFacts) -> Iterator[Finding]:
    """Whether it is loaded with the context that our calls ask for."""
    length = facts.loaded.context_length if facts.loaded else None
    if length is None:
        return
    if length == facts.num_ctx:
        yield ok("context", f"loaded with model.num_ctx, {length} tokens")
    else:
        yield warning(
            "context", f"loaded with {length} tokens, model.num_ctx is {facts.num_ctx}: our next call reloads it",
            "let all users of this Ollama ask for the same num_ctx, or each reloads it for the others",
        )  # fmt: skip


def parallelism(facts: ModelFacts) -> Iterator[Finding]:
    """How many calls it works on at once, against how many the fleet makes."""
    measured = facts.parallel
    if facts.digest is None:
        return
    if measured is None:
        yield note("parallelism", f"not measured: {facts.unmeasured}", "worker-ctl doctor --measure")
        return
    gain = measured.calls * measured.lone_s / measured.all_s if measured.all_s else 0.0
    text = (
        f"{measured.at_once} of {measured.calls} calls ran at once, at {gain:.1f} times the speed of one after another"
    )
    more = "set OLLAMA_NUM_PARALLEL=4 (or more) for the server, if its memory holds as many contexts"
    if isinstance(facts.in_flight_max, int) and measured.at_once < min(facts.in_flight_max, measured.calls):
        yield warning(
            "parallelism", f"{text}; model.in_flight_max is {facts.in_flight_max}: the others queue inside the model",
            f'{more}; or model.in_flight_max = "auto"',
        )  # fmt: skip
    elif measured.at_once == 1:
        yield note("parallelism", text, more)
    else:
        yield ok("parallelism", text)


def deadlines(facts: ModelFacts) -> Iterator[Finding]:
    """Whether drain, lease and the call's own deadline go together."""
    if facts.drain_s < facts.timeout_s:
        yield note(
            "deadlines", f"a drain waits {facts.drain_s:g} s, a call may take {facts.timeout_s:g} s (model.timeout_s): "
            "a stop breaks slower ones off, and they are asked again",
            "raise fleet.drain_s, and stopwaitsecs with it, if calls are slow and dear",
        )  # fmt: skip
    else:
        yield ok("deadlines", f"a drain ({facts.drain_s:g} s) outlasts a call ({facts.timeout_s:g} s)")
    least_s = SHORT_LEASE_FACTOR * facts.redis_timeout_s
    if facts.lease_s < least_s:
        yield warning(
            "deadlines", f"delivery.lease_s is {facts.lease_s:g}: one slow command of Redis loses what is in hand",
            f"set delivery.lease_s to {least_s:g} or more; calls longer than it are no danger, they are renewed",
        )  # fmt: skip


ALIVE: tuple[Judgement, ...] = (server, present, in_memory, on_gpu, context, parallelism)


def judge_model(facts: ModelFacts) -> Iterator[Finding]:
    """Judge the model; a server that is not there, or does not answer, is judged by that alone."""
    for judgement in (asleep, answers) if facts.error or facts.is_asleep else ALIVE:
        yield from judgement(facts)
    yield from deadlines(facts)
