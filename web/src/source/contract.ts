/**
 * What the page asks, and what it is answered: the one border between the browser and whoever knows the patterns.
 *
 * Three sources answer: a server on this machine (`live.ts`), a notebook's kernel (`widget.ts`), and a saved page, which
 * has a trace in itself and computes in the browser (`stored.ts`). `src/saccade/explorer/questions.py` is the other side
 * of the first two; a question has the same name and the same parameters there.
 *
 * Letters: S attention sites of a text (a layer's attention call), H heads, Nq queries, Nk keys, D width.
 * Positions are tokens, counted from 0; ranges are half open, `[start, stop]`.
 */

/** Numbers in a row, as they lie in the answer. */
export type Numbers = Float32Array | Int32Array | Uint8Array;

/** An array with its shape, last dimension fastest. */
export interface NumberArray<T extends Numbers = Float32Array> {
  readonly data: T;
  readonly shape: readonly number[];
}

export type Range = readonly [start: number, stop: number];

/** A head's number among the heads of its site, or the mean of them all. */
export type Head = number | "mean";

/** What the source can do. What it cannot comes with the reason, which the page shows in place of the view. */
export interface Abilities {
  /** Read a text that is typed in. */
  read: true | string;
  /** Show the steps inside a head with the model's own numbers. */
  inside: true | string;
  /** Compare meanings of a word in several sentences. */
  meaning: true | string;
  /** Measure what attention costs here. */
  cost: true | string;
}

/** Question `document`: what there is to look at. */
export interface About {
  /** The model's name. */
  model: string;
  /** What made the numbers: "saccade 0.1.0, torch 2.13.0", for the foot of the page. */
  writer: string;
  /** "half" where a saved page's queries and keys were rounded to half precision; else "full". */
  precision: "full" | "half";
  abilities: Abilities;
  texts: TextInfo[];
  /** Further texts of the trace that are not listed, as it has too many. */
  more?: number;
}

/** A text that the model has read: one element of one entry of a trace. */
export interface TextInfo {
  /** Names it in questions and links: "0", "1", ... */
  id: string;
  /** What it is called: the file's name or the text's first words. */
  name: string;
  /** The text itself, where it is known and at most 20,000 characters long; else null. */
  text: string | null;
  sites: SiteInfo[];
}

/** One attention call of the model. */
export interface SiteInfo {
  /** Path of its module. */
  name: string;
  /** What it is called on screen: "layer 3", "decoder 2, cross". */
  label: string;
  /** The model's numbers of the heads that were kept. A `Head` is a place in this list. */
  heads: number[];
  queries: number;
  keys: number;
  /** Which token sequence its queries are, and its keys: ids for question `tokens`. null: not known. */
  query_tokens: string | null;
  key_tokens: string | null;
  /** Whether any weight can be had exactly (queries and keys were kept). */
  exact: boolean;
  /** Cells along the queries and the keys of the finest map that was kept; null if there is none. */
  map: { cells: readonly [number, number]; reduce: "mean" | "max" | "sum" } | null;
}

/** Question `tokens {text, sequence}`. */
export interface TokensAnswer {
  /** What is printed for each token: a piece of the text, or the token's own name ("[CLS]"). Printable, never empty. */
  labels: string[];
  /** int32 (N): tokens of one word have one number, ascending. */
  word: NumberArray<Int32Array>;
  /** uint8 (N): 1 where the token stands for begin, end, padding or the like. */
  special: NumberArray<Uint8Array>;
}

/** Question `heads {text}`: all of them at a glance. Absent heads of shorter sites are NaN. */
export interface HeadsAnswer {
  /** float32 (S, H, t, t): each head's map, reduced to t x t cells at most; cells of (Nq, Nk) as in the trace format. */
  thumbs: NumberArray;
  /** What `values` hold, with the unit and where the scale ends. */
  statistics: { name: string; label: string; unit: string; least: number; most: number }[];
  /** float32 (S, H, statistics): means over the ordinary tokens' rows. NaN where it is not known. */
  values: NumberArray;
}

/** Question `roles {text}`: what each head does. */
export interface RolesAnswer {
  /** [site][head]: the role's name, "" for none. */
  roles: string[][];
  /** [site][head]: how much of the head's weight the role explains, 0 to 1. */
  shares: number[][];
  /** What each role's name means, in a sentence. */
  meanings: Record<string, string>;
}

/** Parameters of question `tile`. */
export interface TileKey {
  text: string;
  site: number;
  head: Head;
  /** A cell is 2^level tokens wide; a weight by itself at level 0. */
  level: number;
  /** The tile's place in the grid of tiles of TILE cells, from 0. */
  row: number;
  column: number;
  reduce: "mean" | "max";
}

/** Cells along a tile's side. */
export const TILE = 256;

/**
 * A rectangle of a map. Cell a of c along the queries holds the tokens from start + floor(a n / c) to
 * start + floor((a + 1) n / c), n being the rectangle's length; likewise along the keys.
 *
 * The source may answer with another rectangle that covers the tile that was asked for: that of a stored map.
 */
export interface TileAnswer {
  queries: Range;
  keys: Range;
  /** float32 (cells of queries, cells of keys). */
  weights: NumberArray;
  /** Whether the cells are single weights. */
  exact: boolean;
  reduce: "mean" | "max" | "sum";
}

/** Question `window {text, site, head, queries, keys}`: exact weights, at most 2^20 of them. */
export interface WindowAnswer {
  /** float32 (queries, keys). */
  weights: NumberArray;
}

/** Question `margins {text, site, head, queries, keys}`: sums of a rectangle, exact, in at most 512 cells each. */
export interface MarginsAnswer {
  /** float32 (cells): mean over the cell's queries of the weight that lies in the rectangle. */
  rows: NumberArray;
  /** float32 (cells): mean over the cell's keys of what the key received from the rectangle's queries. */
  columns: NumberArray;
}

/** Parameters of question `strongest`. */
export interface StrongestKey {
  text: string;
  site: number;
  heads: number[];
  /** "queries": where each of these looks. "keys": who looks at each of these. */
  side: "queries" | "keys";
  /** Of that side: tokens, or words where `words` is set. At most 256. */
  range: Range;
  /** How many partners of each; at most 64. */
  count: number;
  /** Whether tokens are merged into words: keys are summed, queries averaged. */
  words: boolean;
  /** Whether special tokens are left out; their share is told apart. */
  ordinary: boolean;
}

/** The heaviest partners of some tokens (or words) in some heads. Positions are tokens or words as asked. */
export interface StrongestAnswer {
  /** int32 (heads, range, count): partners, heaviest first; -1 where there are fewer. */
  partner: NumberArray<Int32Array>;
  /** float32 (heads, range, count). */
  weight: NumberArray;
  /** float32 (heads, range): the whole weight on this side, of which partners and special are parts. */
  whole: NumberArray;
  /** float32 (heads, range): of it, that of special tokens where they are left out; else 0. */
  special: NumberArray;
}

/** Parameters of question `inside`. */
export interface InsideKey {
  text: string;
  site: number;
  head: number;
  query: number;
  key: number;
}

/**
 * Question `inside`: one head, step by step, for one query and one key. Of a long text, keys are the `chosen` ones: the
 * heaviest, the asked one, and the query's neighbours; what was left out is in `rest`.
 */
export interface InsideAnswer {
  scale: number;
  softcap: number | null;
  /** A learned logit that takes weight away from all keys; null if the head has none. */
  sink: number | null;
  /** Natural logarithm of the sum that each exponential is divided by; null where there is none to sum. */
  lse: number | null;
  /** float32 (width): the hidden state of the query's token as it enters the layer. null if it was not kept. */
  state: NumberArray | null;
  key_state: NumberArray | null;
  /** float32 (D). */
  query: NumberArray;
  key: NumberArray;
  /** int32 (n): positions of the keys that follow, ascending. */
  chosen: NumberArray<Int32Array>;
  /** float32 (n): scale q·k, softcap applied; bias (0 if none); 1 where the mask shows the key; weight. */
  score: NumberArray;
  bias: NumberArray;
  visible: NumberArray<Uint8Array>;
  weight: NumberArray;
  /** Weight of the keys that are not among the chosen, and of the sink. */
  rest: number;
  /** float32 (n, Dv): the chosen keys' values. null if values were not kept. */
  value: NumberArray | null;
  /** float32 (Dv): sum over all keys of weight x value. */
  output: NumberArray | null;
  /** float32 (H, Dv): the outputs of all heads of the site, for this query: what is concatenated. */
  outputs: NumberArray | null;
  /** float32 (H, width): what each head's output becomes by the projection. null: needs the model. */
  projected: NumberArray | null;
  /** float32 (width): what all heads together add (with the projection's bias). */
  added: NumberArray | null;
  /** float32 (width): the state that left the layer. */
  after: NumberArray | null;
  /** Lengths of the parts of the state that left the layer: residual, heads, MLP, ... in order. null: needs the model. */
  parts: { label: string; length: number; cosine: number }[] | null;
  /** Why what is null is null. */
  missing: string | null;
}

/**
 * Job `read {text, instead?}`: the model reads a text. The text joins the document; the one that it is read instead of,
 * which somebody only came by while typing, leaves it.
 */
export interface ReadAnswer {
  text: TextInfo;
}

/** A sentence for job `meaning`. `sense` null: not known, to be found out. */
export interface SensedSentence {
  text: string;
  sense: string | null;
}

/** Job `meaning {word, sentences}`. Layer 0 is what enters the first layer, l what left l layers. */
export interface MeaningAnswer {
  word: string;
  senses: string[];
  occurrences: {
    label: string;
    sentence: string;
    /** Characters of the sentence (UTF-16 units). */
    start: number;
    stop: number;
    sense: string | null;
  }[];
  /** float32 (layers + 1, occurrences, senses): cosine with each sense's centre. */
  similarity: NumberArray;
  /** float32 (layers + 1, occurrences, 2): the same two axes in all layers. */
  projection: NumberArray;
  /** Share of the last layer's variance that the two axes show. */
  kept: number;
  /** (layers + 1): share of the occurrences whose nearest other has their sense; by chance `chance`. Fewer than two senses have neither. */
  accuracy: number[] | null;
  chance: number;
  /** For each occurrence: towards which sense its movers are counted, and the movers, strongest first. */
  moved: { towards: string; movers: Mover[] }[];
  caveat: string;
}

/** What a head brought from a word, along the direction to a sense. */
export interface Mover {
  layer: number;
  head: number;
  word: string;
  amount: number;
}

/** Job `cost {}`. */
export interface CostAnswer {
  /** What was measured: heads, width, threads, dtype, in words. */
  conditions: string;
  heads: number;
  width: number;
  /** Bytes of one number. */
  itemsize: number;
  /** Measured here, ascending lengths. `stored` is null where a stored pattern was not tried: too large or too slow. */
  points: { length: number; ours: CostPoint; stored: CostPoint | null }[];
}

/** Median seconds of a forward that answers all statistics, and the most bytes it needed beyond its inputs. */
export interface CostPoint {
  seconds: number;
  bytes: number;
}

/** The names of questions, with parameters and answers. A question is answered at once, a job takes its time. */
export interface Questions {
  document: [Record<string, never>, About];
  tokens: [{ text: string; sequence: string }, TokensAnswer];
  heads: [{ text: string }, HeadsAnswer];
  tile: [TileKey, TileAnswer];
  window: [{ text: string; site: number; head: Head; queries: Range; keys: Range }, WindowAnswer];
  margins: [{ text: string; site: number; head: Head; queries: Range; keys: Range }, MarginsAnswer];
  strongest: [StrongestKey, StrongestAnswer];
  inside: [InsideKey, InsideAnswer];
}

export interface Jobs {
  read: [{ text: string; instead?: string }, ReadAnswer];
  roles: [{ text: string }, RolesAnswer];
  meaning: [{ word: string; sentences: SensedSentence[] }, MeaningAnswer];
  cost: [Record<string, never>, CostAnswer];
}

/** How far a job is: a share from 0 to 1, and what is being done. */
export interface Progress {
  share: number;
  what: string;
}

/** Something went wrong that a person can do something about; `message` is a whole sentence. */
export class SourceError extends Error {
  /** "lost": the server is gone. "refused": the token is wrong. "bad": the question. "failed": anything else. */
  constructor(
    message: string,
    readonly kind: "lost" | "refused" | "bad" | "failed" = "failed",
  ) {
    super(message);
  }
}

/** Who answers. A question or job whose signal is aborted is given up on both sides, and throws an AbortError. */
export interface Source {
  ask<Q extends keyof Questions>(
    question: Q,
    parameters: Questions[Q][0],
    signal?: AbortSignal,
  ): Promise<Questions[Q][1]>;
  run<J extends keyof Jobs>(
    job: J,
    parameters: Jobs[J][0],
    options?: { signal?: AbortSignal; progress?: (progress: Progress) => void },
  ): Promise<Jobs[J][1]>;
}
