/** Answers from a server: questions are GET, jobs are POST and answer with server-sent events. */
import { type Jobs, type Progress, type Questions, type Source, SourceError } from "./contract";
import { unpack } from "./parcel";

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
    return unpack(await response.arrayBuffer());
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
    throw new SourceError("The server closed the connection before the answer.", "lost");
  }

  private async fetch(path: string, options: RequestInit): Promise<Response> {
    const headers = { ...options.headers, Authorization: `Bearer ${this.token}` };
    const response = await fetch(`${this.base}api/${path}`, { ...options, headers }).catch((error: unknown) => {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new SourceError("The server does not answer. Is “saccade explore” still running?", "lost");
    });
    if (response.ok) return response;
    const said = (await response.json().catch(() => null)) as { message?: string } | null;
    const kind =
      response.status === 401 || response.status === 403 ? "refused" : response.status < 500 ? "bad" : "failed";
    throw new SourceError(said?.message ?? `The server answered ${response.status}.`, kind);
  }
}

/** The events of a stream, as the specification of server-sent events has them, without ids and retries. */
async function* events(response: Response): AsyncGenerator<{ event: string; data: string }> {
  const reader = (response.body as ReadableStream<Uint8Array>)
    .pipeThrough(new TextDecoderStream() as never)
    .getReader();
  let pending = "";
  for (;;) {
    const { done, value } = (await reader.read()) as { done: boolean; value?: string };
    if (done) return;
    pending += value;
    const blocks = pending.split("\n\n");
    pending = blocks.pop() ?? "";
    for (const block of blocks) {
      const field = (name: string) =>
        block
          .split("\n")
          .find((line) => line.startsWith(`${name}: `))
          ?.slice(name.length + 2);
      const data = field("data");
      if (data !== undefined) yield { event: field("event") ?? "message", data };
    }
  }
}

function bytesOf(base64: string): ArrayBuffer {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
}
