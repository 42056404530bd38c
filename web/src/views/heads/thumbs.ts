/** Heads' maps as pixels: each from nothing to its own largest weight. */

import type { Place } from "../../look.svelte";
import { ENTRIES, entryOf, type PaletteName, type Scale, scaleOf, Tally, type Tone } from "../../model/colour";
import type { HeadsAnswer, NumberArray } from "../../source/contract";

/** A head's map: queries downwards, keys to the right. */
export interface Thumb {
  readonly cells: Float32Array;
  /** Cells along a side. */
  readonly side: number;
}

/** A head's map; null where there is none. Of "mean": the mean over the heads. */
export function thumbOf({ thumbs }: HeadsAnswer, { site, head }: Place, heads: number): Thumb | null {
  const [, most = 0, side = 0] = thumbs.shape;
  if (head !== "mean") return known(part(thumbs, site * most + head), side);
  const sums = new Float32Array(side * side);
  for (let one = 0; one < heads; one++) {
    part(thumbs, site * most + one).forEach((weight, i) => {
      sums[i] = (sums[i] as number) + weight / heads;
    });
  }
  return known(sums, side);
}

function part({ data, shape }: NumberArray, head: number): Float32Array {
  const size = (shape[2] ?? 0) * (shape[3] ?? 0);
  return data.subarray(head * size, (head + 1) * size);
}

function known(cells: Float32Array, side: number): Thumb | null {
  return cells.some((weight) => !Number.isNaN(weight)) ? { cells, side } : null;
}

/** The scale of a linear or logarithmic tone, whose colours do not depend on the weights; ranks take the linear one. */
export function baseScale(tone: Tone, palette: PaletteName): Scale {
  const tally = new Tally();
  tally.add(1);
  return scaleOf(tally, tone === "log" ? "log" : "linear", palette, false);
}

/** RGBA of a map. `scale`: `baseScale` of the same tone. */
export function pixelsOf({ cells }: Thumb, tone: Tone, scale: Scale): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(cells.length * 4);
  const entry = tone === "rank" ? byRank(cells) : byWeight(cells, scale);
  cells.forEach((weight, i) => {
    if (Number.isNaN(weight)) return; // clear
    const at = entry(weight) * 4;
    pixels.set(scale.table.subarray(at, at + 4), i * 4);
  });
  return pixels;
}

function byWeight(cells: Float32Array, scale: Scale): (weight: number) => number {
  const largest = cells.reduce((most, weight) => (Number.isNaN(weight) ? most : Math.max(most, weight)), 0) || 1;
  const own = { ...scale, top: largest, floor: (scale.floor / scale.top) * largest };
  return (weight) => entryOf(own, weight);
}

/** By the share of cells that are smaller. */
function byRank(cells: Float32Array): (weight: number) => number {
  const sorted = cells.filter((weight) => !Number.isNaN(weight)).sort();
  const rank = new Map<number, number>();
  sorted.forEach((weight, i) => {
    if (!rank.has(weight)) rank.set(weight, i);
  });
  const most = Math.max(1, sorted.length - 1);
  return (weight) => Math.round(((rank.get(weight) ?? 0) / most) * (ENTRIES - 1));
}
