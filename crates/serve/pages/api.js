// What pages and server say to each other: one JSON body there, one back, and two ways to fail.

/** A server that does not answer in this time is as good as gone; milliseconds. */
const PATIENCE = 20_000;

/** The server answered, and the answer is no. */
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** Whether the same words would be refused again. A missing session, too many requests, a full disk and a fault of
   *  the server pass; the rest does not. */
  get final() {
    return this.status >= 400 && this.status < 500 && ![401, 408, 429].includes(this.status);
  }
}

/** The server did not answer, so it is unknown whether it did what was asked. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
    this.final = false;
  }
}

/** The JSON that the server answers to a GET. */
export function get(path) {
  return json(path, { method: "GET" });
}

/** The JSON that the server answers to a POST of `body`. */
export function post(path, body) {
  return json(path, posting(body));
}

async function json(path, request) {
  const response = await ask(path, { ...request, signal: AbortSignal.timeout(PATIENCE) });
  return response.json().catch(() => {
    throw new Unreachable();
  });
}

/** A request with a JSON body, for `fetch`. */
export function posting(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

/** The response when it is a good one; throws `Refused` or `Unreachable` otherwise. An `AbortError` is the caller's
 *  own doing and passes through. */
export async function ask(path, request) {
  const response = await fetch(path, request).catch((error) => {
    throw error.name === "AbortError" ? error : new Unreachable();
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered with status ${response.status}.`;
  throw new Refused(response.status, message, response.headers.get("Retry-After"));
}

/** 32 hexadecimal digits: the name of one submission, made here so that sending it twice saves it once. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Who is here, as the server sees it. A token in the address is handed in and then taken out of the address, so that it
 *  stays in no history and no picture of the screen; it stays only where no server took it, for another try. */
export async function session() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return get("/api/session");
  const opened = await post("/api/session", { token }).catch((error) => error);
  if (opened instanceof Unreachable) throw opened;
  history.replaceState(null, "", location.pathname + location.search);
  if (opened instanceof Error) throw opened;
  return opened;
}
