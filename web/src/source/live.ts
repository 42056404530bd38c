/** Answers from a server: questions are GET, jobs are POST and answer with server-sent events. */
import { type Jobs, type Progress, type Questions, type Source, SourceError } from "./contract";
import { unpack } from "./parcel";

const GONE = "The server does not answer. Is “saccade explore” still running?";
const CUT_OFF = "The server closed the connection before the answer.";

export class LiveSource implements Source {
  /** `base` ends with a slash; the token is the one in the link that the server printed. */
  constructor(
    private readonly base: string,
    private readonly token: string,
  ) {}

  async ask<Q extends keyof Questions>(
    question: Q,
    parameters: Questions[Q][0],
    signal?: AbortSignal,
  ): Promise<Questions[Q][1]> {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      query.set(name, Array.isArray(value) ? value.join(",") : String(value));
    }
    const response = await this.fetch(`${question}?${query}`, { signal: signal ?? null });
    return unpack(await orLost(response.arrayBuffer(), CUT_OFF));
  }

  async run<J extends keyof Jobs>(
    job: J,
    parameters: Jobs[J][0],
    { signal, progress }: { signal?: AbortSignal; progress?: (progress: Progress) => void } = {},
  ): Promise<Jobs[J][1]> {
    const response = await this.fetch(`run/${job}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(parameters),
      signal: signal ?? null,
    });
    for await (const { event, data } of events(response)) {
      if (event === "progress") progress?.(JSON.parse(data) as Progress);
      else if (event === "error") throw new SourceError((JSON.parse(data) as { message: string }).message);
      else if (event === "result") return unpack(bytesOf(data));
    }
    throw new SourceError(CUT_OFF, "lost");
  }

  private async fetch(path: string, options: RequestInit): Promise<Response> {
    const headers = { ...options.headers, Authorization: `Bearer ${this.token}` };
    const response = await orLost(fetch(`${this.base}api/${path}`, { ...options, headers }), GONE);
    if (response.ok) return response;
    const said = (await response.json().catch(() => null)) as { message?: string } | null;
    const kind =
      response.status === 401 || response.status === 403 ? "refused" : response.status < 500 ? "bad" : "failed";
    throw new SourceError(said?.message ?? `The server answered ${response.status}.`, kind);
  }
}

/** What comes over the network; what fails there, except by an abort of ours, is told as lost. */
function orLost<T>(coming: Promise<T>, message: string): Promise<T> {
  return coming.catch((error: unknown) => {
    // What fetch throws for a network that fails is a TypeError; an abort throws what it was given.
    throw error instanceof TypeError ? new SourceError(message, "lost") : error;
  });
}

/** The events of a stream, as the specification of server-sent events has them, without ids and retries. */
async function* events(response: Response): AsyncGenerator<{ event: string; data: string }> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  const decoder = new TextDecoder();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await orLost(reader.read(), CUT_OFF);
      if (done) return;
      // A result comes in many pieces: only what is new, and the character before it, can hold the end of an event.
      let from = Math.max(pending.length - 1, 0);
      pending += decoder.decode(value, { stream: true });
      for (let end = pending.indexOf("\n\n", from); end >= 0; end = pending.indexOf("\n\n", from)) {
        const fields = fieldsOf(pending.slice(0, end));
        pending = pending.slice(end + 2);
        from = 0;
        if (fields.data !== undefined) yield { event: fields.event ?? "message", data: fields.data };
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined); // of a stream that failed or was aborted already
  }
}

/** An event's fields. A line that begins with a colon is a comment. */
function fieldsOf(block: string): { event?: string; data?: string } {
  const fields: Record<string, string> = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
  }
  return fields;
}

function bytesOf(base64: string): ArrayBuffer {
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = characters.charCodeAt(at);
  return bytes.buffer;
}
