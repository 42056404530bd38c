/** A map that is shown: where it is, and from which tiles it is drawn. */
import { Tally } from "../../model/colour";
import { type Range, TILE } from "../../source/contract";
import type { Sums } from "./axes";
import { countsOf, tallyOf } from "./facts";
import { type Box, type Extent, levelOf, tokensIn } from "./geometry";
import type { Panel } from "./scene";
import { extentOf, type MapSpec } from "./specs";
import { drawn, nameOf, placesOf, type TileCache, type Wanted } from "./tiles";

export interface Shown extends Panel {
  readonly spec: MapSpec;
  readonly extent: Extent;
  /** Tiles that it would best be drawn from. */
  wanted: readonly Wanted[];
  /** What its tiles were chosen for; empty: choose them again. */
  signature: string;
  readonly special: Int32Array | null;
  sums: Sums | null;
}

/** A map in the place of one before it: where it is seen through the same window, in the same box. */
export function shownAs(spec: MapSpec, before: readonly Shown[], place: number): Shown {
  const box: Box = { left: 0, top: 0, width: 1, height: 1 };
  const same = before.find((map) => nameOf(map.spec.subject) === nameOf(spec.subject));
  return {
    spec,
    extent: extentOf(spec),
    box: same?.box ?? before[place]?.box ?? box,
    window: same?.window ?? { x: 0, y: 0, sx: 1, sy: 1 },
    signature: "",
    tiles: [],
    against: null,
    wanted: [],
    special: spec.specialKeys && countsOf(spec.specialKeys),
    sums: same?.sums ?? null,
  };
}

/** Tokens of a map that are in view. */
export function viewOf({ window, extent, box }: Shown): { queries: Range; keys: Range } {
  return tokensIn(window, extent, box);
}

/** Choose from which tiles a map is drawn. Little happens where that is the same as before. */
export function chooseTiles(map: Shown, cache: TileCache): void {
  const level = levelOf(map.window, map.extent, map.box);
  const { queries, keys } = viewOf(map);
  const tile = TILE * 2 ** level;
  const signature = `${level} ${Math.floor(queries[0] / tile)} ${Math.ceil(queries[1] / tile)} ${Math.floor(keys[0] / tile)} ${Math.ceil(keys[1] / tile)}`;
  if (signature === map.signature) return;
  map.signature = signature;
  const { subject, against } = map.spec;
  const places = placesOf(level, queries, keys, subject.extent);
  map.tiles = drawn(cache, subject, places);
  map.wanted = places.map((place) => ({ subject, place }));
  map.against = null;
  if (against) {
    const less = placesOf(level, queries, keys, against.extent);
    map.against = drawn(cache, against, less);
    map.wanted = map.wanted.concat(less.map((place) => ({ subject: against, place })));
  }
  cache.touch(map.tiles);
  if (map.against) cache.touch(map.against);
}

/** A single weight or difference, if it is here. */
export function weightAt({ spec }: Shown, cache: TileCache, query: number, key: number): number | undefined {
  const weight = cache.weightAt(spec.subject, query, key);
  if (!spec.against || weight === undefined) return weight;
  const other = cache.weightAt(spec.against, query, key);
  return other === undefined ? undefined : weight - other;
}

/** The weights in view, from which their scale is made. `leftOut`: whether special tokens' columns are not among them. */
export function tallyInView(maps: readonly Shown[], ranked: boolean): { tally: Tally; leftOut: boolean } {
  const ordinary = tallyWith(maps, ranked, true);
  // Where nothing but special tokens has weight, it is theirs that is seen.
  return ordinary.tally.largest === 0 && ordinary.leftOut ? tallyWith(maps, ranked, false) : ordinary;
}

function tallyWith(maps: readonly Shown[], ranked: boolean, ordinary: boolean): { tally: Tally; leftOut: boolean } {
  const tally = new Tally(ranked);
  let leftOut = false;
  for (const map of maps) {
    const left = tallyOf(tally, map.tiles, map.against, viewOf(map), ordinary ? map.special : null);
    leftOut ||= left;
  }
  return { tally, leftOut };
}
