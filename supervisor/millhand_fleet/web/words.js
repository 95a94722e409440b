// Figures as words. Whatever is not known is a dash.

export const NOTHING = "–";

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const known = (value) => typeof value === "number" && Number.isFinite(value);
export const count = (value) => (known(value) ? grouped.format(value) : NOTHING);
export const many = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;
export const rate = (value) => (known(value) ? (value < 100 ? value.toFixed(1) : grouped.format(value)) : NOTHING);

export function share(value) {
  if (!known(value)) return NOTHING;
  const percent = value * 100;
  if (percent === 100) return "100 %";
  const digits = percent < 99 ? 1 : 2;
  const down = Math.floor(percent * 10 ** digits + 1e-6) / 10 ** digits; // only all is 100 %
  return `${down.toFixed(digits)} %`;
}

export function span(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 60) return `${seconds < 10 ? Math.round(seconds * 10) / 10 : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

export function brief(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 99.5 ? `${seconds.toPrecision(3)} s` : span(seconds);
}

export function ago(at, now) {
  const seconds = (Date.parse(now) - Date.parse(at)) / 1000; // both by the fleet's clock: the reader's may be wrong
  if (!known(seconds)) return at ?? NOTHING;
  return seconds < 1 ? "just now" : `${span(Math.floor(seconds))} ago`;
}
