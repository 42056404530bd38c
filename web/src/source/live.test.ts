import { afterEach, expect, it, vi } from "vitest";
import { LiveSource } from "./live";

const source = new LiveSource("http://127.0.0.1:1/", "a-token");

/** Answers the next request; returns what was asked. */
function answers(response: Response | Error): { url: URL; options: RequestInit & { headers: Record<string, string> } } {
  const asked = {} as ReturnType<typeof answers>;
  vi.stubGlobal("fetch", (url: string, options: never) => {
    Object.assign(asked, { url: new URL(url), options });
    return response instanceof Error ? Promise.reject(response) : Promise.resolve(response);
  });
  return asked;
}

afterEach(() => vi.unstubAllGlobals());

function parcel(answer: unknown): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify({ answer, arrays: {} }));
  const bytes = new Uint8Array(Math.ceil((4 + json.length) / 8) * 8);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, 4);
  return bytes;
}

const base64 = (bytes: Uint8Array): string => btoa(String.fromCharCode(...bytes));
const event = (name: string, data: string): string => `event: ${name}\ndata: ${data}\n\n`;

/** A stream of some text, in pieces of so many bytes; ends with an error if one is given. */
function streamed(text: string, size = 1 << 16, error?: Error): { response: Response; cancelled: () => boolean } {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      const piece = bytes.slice(at, at + size);
      at += size;
      if (piece.length > 0) controller.enqueue(piece);
      else if (error) controller.error(error);
      else controller.close();
    },
    cancel() {
      cancelled = true;
    },
  });
  return { response: new Response(body), cancelled: () => cancelled };
}

it("asks with the token and the parameters as a link has them", async () => {
  const asked = answers(new Response(parcel({ labels: ["a"] })));
  const parameters = { text: "0", site: 1, head: "mean" as const, queries: [0, 5] as const, keys: [2, 9] as const };
  expect(await source.ask("window", parameters)).toEqual({ labels: ["a"] });
  expect(asked.url.pathname).toBe("/api/window");
  expect(Object.fromEntries(asked.url.searchParams)).toEqual({
    text: "0",
    site: "1",
    head: "mean",
    queries: "0,5",
    keys: "2,9",
  });
  expect(asked.options.headers.Authorization).toBe("Bearer a-token");
});

it.each([1, 2, 3, 7, 1 << 16])("follows a job in pieces of %i bytes", async (size) => {
  const told: unknown[] = [];
  const progress = { share: 0.5, what: "läuft: …" };
  const answer = { text: { id: "1", name: "x".repeat(3000) } };
  const text = `: still here\n\n${event("progress", JSON.stringify(progress))}: still here\n\n${event("result", base64(parcel(answer)))}`;
  const asked = answers(streamed(text, size).response);
  const found = await source.run("read", { text: "a text" }, { progress: (one) => told.push(one) });
  expect(found).toEqual(answer);
  expect(told).toEqual([progress]);
  expect(asked.options).toMatchObject({ method: "POST", body: '{"text":"a text"}' });
});

it("lets go of a stream that it does not read to its end", async () => {
  const { response, cancelled } = streamed(event("result", base64(parcel({}))) + ": more\n\n".repeat(10), 64);
  answers(response);
  await source.run("cost", {});
  expect(cancelled()).toBe(true);
});

it.each([
  [401, '{"message": "The token is wrong."}', "refused", "The token is wrong."],
  [403, '{"message": "Another site asks."}', "refused", "Another site asks."],
  [400, '{"message": "head = 99: there are 12"}', "bad", "head = 99: there are 12"],
  [429, '{"message": "Too much."}', "bad", "Too much."],
  [500, '{"message": "Something went wrong."}', "failed", "Something went wrong."],
  [502, "<html>", "failed", "The server answered 502."],
])("tells status %i as the server does", async (status, body, kind, message) => {
  answers(new Response(body, { status }));
  await expect(source.ask("document", {})).rejects.toMatchObject({ name: "Error", kind, message });
});

it("tells a job's error", async () => {
  answers(streamed(event("error", '{"message": "the text is too long"}')).response);
  await expect(source.run("read", { text: "" })).rejects.toMatchObject({
    kind: "failed",
    message: "the text is too long",
  });
});

it("tells a server that is gone", async () => {
  answers(new TypeError("Failed to fetch"));
  await expect(source.ask("document", {})).rejects.toMatchObject({ kind: "lost", message: /still running/ });
  const progress = event("progress", '{"share": 0, "what": "reading"}');
  for (const error of [undefined, new TypeError("network error")]) {
    answers(streamed(progress, 1 << 16, error).response);
    await expect(source.run("cost", {})).rejects.toMatchObject({ kind: "lost", message: /closed the connection/ });
  }
});

it("passes an abort on as it is", async () => {
  const abort = new DOMException("", "AbortError");
  answers(abort);
  await expect(source.ask("document", {})).rejects.toBe(abort);
  answers(streamed(": still here\n\n", 1 << 16, abort).response);
  await expect(source.run("cost", {})).rejects.toBe(abort);
});
