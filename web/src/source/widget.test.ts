/** The page's end of a notebook's messages; the kernel is a model that writes down what it is sent. */
import { expect, test, vi } from "vitest";
import { SourceError } from "./contract";
import { type WidgetModel, WidgetSource } from "./widget";

type Sent = { number: string; kind: string; name?: string; parameters?: unknown };
type Heard = (message: unknown, buffers?: unknown[]) => void;

function kernel() {
  const heard = new Set<Heard>();
  const sent: Sent[] = [];
  const model = {
    send: (content: Sent) => sent.push(content),
    on: (event: string, listener: Heard) => event === "msg:custom" && heard.add(listener),
    off: (event: string, listener: Heard) => event === "msg:custom" && heard.delete(listener),
  } as unknown as WidgetModel;
  const say = (message: unknown, ...buffers: unknown[]) => {
    for (const listener of heard) listener(message, buffers);
  };
  return { model, sent, heard, say };
}

/** {model: "tiny", values: [1, 2]} as `saccade.explorer.parcel` packs it. */
function parcel(): ArrayBuffer {
  const json = JSON.stringify({
    answer: { model: "tiny" },
    arrays: { values: { dtype: "f4", shape: [2], offset: 0 } },
  });
  const base = Math.ceil((4 + json.length) / 8) * 8;
  const bytes = new ArrayBuffer(base + 8);
  new DataView(bytes).setUint32(0, json.length, true);
  new Uint8Array(bytes, 4).set(new TextEncoder().encode(json));
  new Float32Array(bytes, base).set([1, 2]);
  return bytes;
}

/** The same bytes in the middle of others, where no array could begin. */
function within(bytes: ArrayBuffer): Uint8Array {
  const larger = new Uint8Array(bytes.byteLength + 6).fill(255);
  larger.set(new Uint8Array(bytes), 3);
  return larger.subarray(3, 3 + bytes.byteLength);
}

const ANSWER = { model: "tiny", values: { data: new Float32Array([1, 2]), shape: [2] } };
const numberOf = (sent: Sent[], place = 0) => (sent[place] as Sent).number;

test("a question and its answer, however the notebook hands over bytes", async () => {
  const { model, sent, say } = kernel();
  const source = new WidgetSource(model);
  const middle = within(parcel());
  const kinds = [parcel(), new DataView(middle.buffer, middle.byteOffset, middle.byteLength), middle];
  for (const [place, buffer] of kinds.entries()) {
    const answer = source.ask("tokens", { text: "0", sequence: "a" });
    expect(sent[place]).toMatchObject({ kind: "question", name: "tokens", parameters: { text: "0", sequence: "a" } });
    say({ number: numberOf(sent, place), kind: "result" }, buffer);
    expect(await answer).toEqual(ANSWER);
  }
});

test("answers that overtake each other", async () => {
  const { model, sent, say } = kernel();
  const source = new WidgetSource(model);
  const first = source.ask("heads", { text: "0" });
  const second = source.ask("heads", { text: "1" });
  say({ number: numberOf(sent, 1), kind: "result" }, parcel());
  expect(await second).toEqual(ANSWER);
  say({ number: numberOf(sent, 0), kind: "error", message: "There is no text 0." });
  await expect(first).rejects.toThrow(new SourceError("There is no text 0."));
});

test("a job says how far it is", async () => {
  const { model, sent, say } = kernel();
  const progress = vi.fn();
  const found = new WidgetSource(model).run("cost", {}, { progress });
  expect(sent[0]).toMatchObject({ kind: "job", name: "cost" });
  say({ number: numberOf(sent), kind: "progress", share: 0.5, what: "measuring" });
  say({ number: numberOf(sent), kind: "result" }, parcel());
  expect(await found).toEqual(ANSWER);
  say({ number: numberOf(sent), kind: "progress", share: 1, what: "late" });
  expect(progress.mock.calls).toEqual([[{ share: 0.5, what: "measuring" }]]);
});

test("what is given up is given up on both sides, and its answer is not missed", async () => {
  const { model, sent, say } = kernel();
  const source = new WidgetSource(model);
  const controller = new AbortController();
  const answer = source.ask("heads", { text: "0" }, controller.signal);
  controller.abort();
  await expect(answer).rejects.toMatchObject({ name: "AbortError" });
  expect(sent.slice(1)).toEqual([{ number: numberOf(sent), kind: "cancel" }]);
  say({ number: numberOf(sent), kind: "result" }, parcel());
  await expect(source.ask("heads", { text: "0" }, controller.signal)).rejects.toMatchObject({ name: "AbortError" });
  expect(sent).toHaveLength(2);
});

test("what is answered is not given up any more", async () => {
  const { model, sent, say } = kernel();
  const controller = new AbortController();
  const answer = new WidgetSource(model).ask("heads", { text: "0" }, controller.signal);
  say({ number: numberOf(sent), kind: "result" }, parcel());
  await answer;
  controller.abort();
  expect(sent).toHaveLength(1);
});

test("two displays of one widget keep their answers apart", async () => {
  const { model, sent, say } = kernel();
  const [one, other] = [new WidgetSource(model), new WidgetSource(model)];
  const answers = [one.ask("document", {}), other.ask("document", {})];
  expect(numberOf(sent, 0)).not.toBe(numberOf(sent, 1));
  say({ number: numberOf(sent, 1), kind: "error", message: "for the other" });
  say({ number: numberOf(sent, 0), kind: "result" }, parcel());
  expect(await answers[0]).toEqual(ANSWER);
  await expect(answers[1]).rejects.toThrow("for the other");
});

test("a display that is taken away leaves nothing behind", async () => {
  const { model, sent, heard } = kernel();
  const source = new WidgetSource(model);
  const answer = source.run("roles", { text: "0" });
  source.close();
  await expect(answer).rejects.toMatchObject({ name: "AbortError" });
  expect(sent.at(-1)).toEqual({ number: numberOf(sent), kind: "cancel" });
  expect(heard.size).toBe(0);
});

test("an answer without bytes, or with others than ours, is an error that says so", async () => {
  const { model, sent, say } = kernel();
  const source = new WidgetSource(model);
  const bare = source.ask("document", {});
  say({ number: numberOf(sent), kind: "result" });
  await expect(bare).rejects.toThrow("The kernel failed.");
  const torn = source.ask("document", {});
  say({ number: numberOf(sent, 1), kind: "result" }, parcel().slice(0, 20));
  await expect(torn).rejects.toThrow("cannot be read");
  await expect(torn).rejects.toBeInstanceOf(SourceError);
});

test("no two pages have the same numbers, even where there is no secure context", async () => {
  vi.stubGlobal("crypto", undefined); // a notebook server that is reached over plain HTTP
  const { model, sent } = kernel();
  void new WidgetSource(model).ask("document", {});
  void new WidgetSource(model).ask("document", {});
  vi.unstubAllGlobals();
  expect(numberOf(sent, 0)).not.toBe(numberOf(sent, 1));
});
