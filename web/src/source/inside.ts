/** Question `inside`, from a trace: one head, step by step, for one query and one key. */
import type { Floats } from "../trace";
import { addBias, capped, visible } from "./attention";
import type { InsideAnswer, InsideKey, NumberArray } from "./contract";
import { pieces, type Recorded } from "./recorded";
import { type StoredSource, shaped } from "./stored";

/** Keys that are told one by one, and how far from the query they are told in any case. */
const MOST_KEYS = 64;
const NEIGHBOURS = 4;
/** Keys that are read at once. */
const PIECE = 8192;

const MODEL_NEEDED = "What a head's output becomes needs the model, and this page was saved without it.";

export async function inside(source: StoredSource, asked: InsideKey, signal?: AbortSignal): Promise<InsideAnswer> {
  const { head, query, key } = asked;
  const site = await source.exact({ ...asked, queries: [query, query + 1], keys: [key, key + 1] });
  const { info, stack } = site;
  const row = await rowOf(site, head, query, signal);
  const [outputs, first] = await Promise.all([outputsOf(site, asked, row, signal), site.firstQuery()]);
  const chosen = choose(row.weight.subarray(0, info.keys), key, first === null ? null : first + query);
  const held = row.sink === null ? 0 : Math.exp(row.sink - row.lse);
  const [state, keyState, after] = await Promise.all([
    stateOf(site, query, 0),
    first === null || key < first ? null : stateOf(site, key - first, 0),
    (await source.trace()).metadata.layers === null ? stateOf(site, query, 1) : null, // else it may be a farther layer's,
  ]);
  const values = stack.kept.includes("values");
  const missing = [
    values ? null : `${info.name}: values were not kept.`,
    lacking(state, after, keyState),
    MODEL_NEEDED,
  ];
  const others = row.weight.reduce((sum, weight, at) => (chosen.includes(at) ? sum : sum + weight), 0);
  return {
    scale: site.site.scale,
    softcap: site.site.softcap,
    sink: row.sink,
    lse: row.lse,
    state,
    key_state: keyState,
    query: vector(row.query),
    key: vector((await site.block(head, [query, query + 1], [key, key + 1])).key),
    chosen: shaped(Int32Array.from(chosen), chosen.length),
    score: picked(row.score, chosen),
    bias: picked(row.bias, chosen),
    visible: shaped(
      Uint8Array.from(chosen, (at) => row.seen[at] as number),
      chosen.length,
    ),
    weight: picked(row.weight, chosen),
    rest: others + held,
    value: values ? await valuesOf(site, head, chosen) : null,
    output: outputs && vector(outputs.subarray(head * stack.value_width, (head + 1) * stack.value_width)),
    outputs: outputs && shaped(outputs, info.heads.length, stack.value_width),
    projected: null,
    added: null,
    after: after?.data.some(Number.isNaN) ? null : after, // nobody saw it leave
    parts: null,
    missing: [...new Set(missing.filter((reason) => reason !== null))].join(" "),
  };
}

/** One row of a head's pattern, padding included. */
interface Row {
  query: Floats;
  score: Float64Array;
  bias: Float64Array;
  seen: Uint8Array;
  weight: Float64Array;
  sink: number | null;
  lse: number;
}

/** A query's row, with what divides its exponentials computed from the very scores that are told. */
async function rowOf(site: Recorded, head: number, query: number, signal: AbortSignal | undefined): Promise<Row> {
  const count = site.stack.keys;
  const [score, bias, seen] = [new Float64Array(count), new Float64Array(count), new Uint8Array(count)];
  let queried: Floats = new Float32Array();
  for (const keys of pieces([0, count], PIECE)) {
    signal?.throwIfAborted();
    const block = await site.block(head, [query, query + 1], keys);
    capped(block, 0, score.subarray(...keys));
    addBias(block, 0, bias.subarray(...keys));
    visible(block, 0, seen.subarray(...keys));
    queried = block.query;
  }
  const sink = await site.sink(head);
  const logits = score.map((number, at) => (seen[at] ? number + (bias[at] as number) : Number.NEGATIVE_INFINITY));
  const lse = logSum(logits, sink ?? Number.NEGATIVE_INFINITY);
  const weight = logits.map((logit, at) => (seen[at] ? Math.exp(logit - lse) : 0));
  return { query: queried, score, bias, seen, weight, sink, lse };
}

function logSum(logits: Float64Array, sink: number): number {
  const most = logits.reduce((a, b) => Math.max(a, b), sink);
  if (most === Number.NEGATIVE_INFINITY || Number.isNaN(most)) return most;
  return most + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - most), Math.exp(sink - most)));
}

/** The keys that are told one by one, ascending: all; or the asked one, the query's neighbours, the heaviest. */
export function choose(weight: Float64Array, key: number, own: number | null): number[] {
  const places = Array.from(weight.keys());
  if (places.length <= MOST_KEYS) return places;
  const wanted = new Set([key]);
  for (let near = -NEIGHBOURS; own !== null && near <= NEIGHBOURS; near++) {
    if (own + near >= 0 && own + near < places.length) wanted.add(own + near);
  }
  const heaviness = weight.map((number) => number || 0); // NaN is none
  places.sort((a, b) => (heaviness[b] as number) - (heaviness[a] as number));
  for (const place of places) {
    if (wanted.size === MOST_KEYS) break;
    wanted.add(place);
  }
  return [...wanted].sort((a, b) => a - b);
}

/** The outputs of all heads for the query, (H, Dv); null without values. */
async function outputsOf(
  site: Recorded,
  asked: InsideKey,
  row: Row,
  signal: AbortSignal | undefined,
): Promise<Float32Array | null> {
  if (!site.stack.kept.includes("values")) return null;
  const width = site.stack.value_width;
  const found = new Float64Array(site.info.heads.length * width);
  for (const head of site.info.heads.keys()) {
    const { seen, weight } = head === asked.head ? row : await rowOf(site, head, asked.query, signal);
    for (const keys of pieces([0, site.stack.keys], PIECE)) {
      const values = (await site.values(head, keys)) as Floats;
      for (let key = keys[0], at = 0; key < keys[1]; key++) {
        if (!seen[key])
          at += width; // what is hidden adds nothing, whatever it holds
        else
          for (let d = 0; d < width; d++, at++)
            (found[head * width + d] as number) += (weight[key] as number) * (values[at] as number);
      }
    }
  }
  return Float32Array.from(found);
}

async function valuesOf(site: Recorded, head: number, chosen: number[]): Promise<NumberArray> {
  const width = site.stack.value_width;
  const found = new Float32Array(chosen.length * width);
  for (const [at, key] of chosen.entries()) found.set((await site.values(head, [key, key + 1])) as Floats, at * width);
  return shaped(found, chosen.length, width);
}

/** A token's hidden state; null if it was not kept, or if the states are of other tokens than the queries. */
async function stateOf(site: Recorded, position: number, step: 0 | 1): Promise<NumberArray | null> {
  const found = await site.state(position, step);
  return found && vector(found);
}

function lacking(state: unknown, after: unknown, keyState: unknown): string | null {
  if (!state) return "The hidden states of the layer's tokens were not kept.";
  if (!after) return "The state that left the layer was not kept.";
  return keyState ? null : "The key is no token of this layer, so it has no state there.";
}

function picked(values: Float64Array, chosen: number[]): NumberArray {
  return shaped(
    Float32Array.from(chosen, (at) => values[at] as number),
    chosen.length,
  );
}

function vector(values: Floats): NumberArray {
  return shaped(Float32Array.from(values), values.length);
}
