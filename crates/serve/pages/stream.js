// A chat answer as it comes: the server-sent events of `/v1/chat/completions`.

import { Refused, Unreachable, ask, posting } from "./api.js";

/** Asks for `n` answers to `messages`. `onText(index, text)` gets each piece of each answer as it comes, and
 *  `onNames(ids)` the names to give feedback on. Returns when all are whole; throws when they will never be. */
export async function stream({ model, messages, n }, signal, { onText, onNames }) {
  const body = { model, messages, stream: true, ...(n > 1 && { n }) };
  const response = await ask("/v1/chat/completions", { ...posting(body), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const { error, choices = [], instruct } = JSON.parse(data);
    if (error) throw new Refused(500, error.message);
    if (instruct) onNames(instruct.answers);
    for (const { index, delta } of choices) if (delta?.content) onText(index, delta.content);
  }
  throw new Unreachable();
}

/** The data of each event. Pieces of the network end anywhere, inside a line or a character. */
async function* events(bytes) {
  let rest = "";
  for await (const text of texts(bytes)) {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trimStart();
  }
}

/** Not every browser can loop over a stream itself. */
async function* texts(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let piece = await read(reader); !piece.done; piece = await read(reader)) yield piece.value;
  } finally {
    reader.cancel().catch(() => null);
  }
}

/** The next piece. Someone who stops wants an `AbortError`; any other failure is the connection's. */
function read(reader) {
  return reader.read().catch((error) => {
    throw error.name === "AbortError" ? error : new Unreachable();
  });
}
