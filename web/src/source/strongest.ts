/**
 * Question `strongest`, from a trace: the heaviest partners of some tokens, or words. As words, keys are summed and
 * queries averaged. The answers are those of `src/saccade/explorer/strongest.py`.
 */
import { length } from "./attention";
import { type Range, SourceError, type StrongestAnswer, type StrongestKey } from "./contract";
import { pieces, type Recorded } from "./recorded";
import { type StoredSource, shaped } from "./stored";

const MOST_UNITS = 256;
const MOST_PARTNERS = 64;
/** Sums that are held at once: 16 MiB. */
const ROOM = 1 << 21;
/** Weights that are computed for one answer; some seconds. */
const LONGEST = 1 << 25;

/** The queries or the keys of a site as units: tokens, or words. */
interface Side {
  /** The unit of each token, ascending. */
  unit: Int32Array;
  /** Tokens of each unit. */
  sizes: Int32Array;
  /** 1 where a unit is a special token. */
  special: Uint8Array;
}

export async function strongest(
  source: StoredSource,
  asked: StrongestKey,
  signal?: AbortSignal,
): Promise<StrongestAnswer> {
  const { heads, count, range } = asked;
  if (
    !heads.length ||
    !(count >= 1 && count <= MOST_PARTNERS) ||
    !(length(range) >= 1 && length(range) <= MOST_UNITS)
  ) {
    throw new SourceError(
      `strongest: expected a head, 1 to ${MOST_PARTNERS} partners, and 1 to ${MOST_UNITS} tokens or words.`,
      "bad",
    );
  }
  for (const head of heads) await source.exact({ ...asked, head });
  const site = await source.site(asked.text, asked.site);
  const { info } = site;
  const queries = await sideOf(source, asked, info.query_tokens, info.queries);
  const keys = await sideOf(source, asked, info.key_tokens, info.keys);
  const [mine, others] = asked.side === "queries" ? [queries, keys] : [keys, queries];
  if (range[1] > mine.sizes.length)
    throw new SourceError(`range ${range[0]} to ${range[1]}: there are ${mine.sizes.length}.`, "bad");
  if (heads.length * length(tokensOf(mine, range)) * others.unit.length > LONGEST) {
    throw new SourceError("So many weights are too much for a saved page: choose fewer heads, or zoom in.", "bad");
  }
  const shape = [heads.length, length(range)] as const;
  const cells = heads.length * length(range);
  const partner = new Int32Array(cells * count).fill(-1);
  const weight = new Float32Array(cells * count);
  const [whole, special] = [new Float32Array(cells), new Float32Array(cells)];
  for (const [number, head] of heads.entries()) {
    for (const units of pieces(range, Math.max(Math.floor(ROOM / others.sizes.length), 1))) {
      const sums = await merged(site, head, asked.side, mine, others, units, signal);
      for (let unit = units[0]; unit < units[1]; unit++) {
        const cell = number * length(range) + unit - range[0];
        const row = sums.subarray((unit - units[0]) * others.sizes.length, (unit - units[0] + 1) * others.sizes.length);
        whole[cell] = row.reduce((sum, one) => sum + one, 0);
        if (asked.ordinary) {
          special[cell] = row.reduce((sum, one, at) => (others.special[at] ? sum + one : sum), 0);
          others.special.forEach((is, at) => {
            if (is) row[at] = 0;
          });
        }
        heaviest(row, count).forEach((at, rank) => {
          weight[cell * count + rank] = row[at] as number;
          if ((row[at] as number) > 0) partner[cell * count + rank] = at;
        });
      }
    }
  }
  return {
    partner: shaped(partner, ...shape, count),
    weight: shaped(weight, ...shape, count),
    whole: shaped(whole, ...shape),
    special: shaped(special, ...shape),
  };
}

async function sideOf(
  source: StoredSource,
  { text, words }: StrongestKey,
  sequence: string | null,
  count: number,
): Promise<Side> {
  const single = { unit: Int32Array.from({ length: count }, (_, at) => at), sizes: new Int32Array(count).fill(1) };
  if (sequence === null) return { ...single, special: new Uint8Array(count) };
  const tokens = await source.tokens(text, sequence);
  if (!words) return { ...single, special: tokens.special.data };
  const unit = tokens.word.data;
  const units = (unit[unit.length - 1] ?? -1) + 1;
  const [sizes, special] = [new Int32Array(units), new Uint8Array(units)];
  unit.forEach((word, at) => {
    (sizes[word] as number)++;
    if (tokens.special.data[at]) special[word] = 1;
  });
  return { unit, sizes, special };
}

/** The tokens of some units. */
function tokensOf({ sizes }: Side, [start, stop]: Range): Range {
  const before = (unit: number): number => sizes.subarray(0, unit).reduce((sum, size) => sum + size, 0);
  return [before(start), before(stop)];
}

/** The weights between some units and all partners, (units, partners). */
async function merged(
  site: Recorded,
  head: number,
  asked: StrongestKey["side"],
  mine: Side,
  others: Side,
  units: Range,
  signal: AbortSignal | undefined,
): Promise<Float64Array> {
  const wide = others.sizes.length;
  const sums = new Float64Array(length(units) * wide);
  const [here, all] = [tokensOf(mine, units), [0, others.unit.length] as const];
  const [queries, keys] = asked === "queries" ? [here, all] : [all, here];
  const averaged = asked === "queries" ? mine : others;
  await site.sweep(
    head,
    queries,
    keys,
    (weights, query, first) => {
      const size = averaged.sizes[averaged.unit[query] as number] as number;
      for (let at = 0; at < weights.length; at++) {
        const [one, other] = asked === "queries" ? [query, first + at] : [first + at, query];
        const cell = ((mine.unit[one] as number) - units[0]) * wide + (others.unit[other] as number);
        (sums[cell] as number) += (weights[at] as number) / size;
      }
    },
    signal,
  );
  return sums;
}

/** The places of the largest numbers, the largest first; NaN is larger than all. */
function heaviest(row: Float64Array, count: number): number[] {
  const found: number[] = [];
  const heavier = (a: number, b: number): boolean => Number.isNaN(a) || a > b;
  for (let at = 0; at < row.length; at++) {
    const weight = row[at] as number;
    if (found.length === count && !heavier(weight, row[found[count - 1] as number] as number)) continue;
    let rank = found.length;
    while (rank && heavier(weight, row[found[rank - 1] as number] as number)) rank--;
    found.splice(rank, 0, at);
    found.length = Math.min(found.length, count);
  }
  return found;
}
