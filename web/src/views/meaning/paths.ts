/** The map of paths: axes of one unit, points between layers, and labels where they cover nothing. */

import { scaleLinear } from "d3-scale";
import { type Axis, CHARACTER, minus, type Pair } from "../../parts/chart";
import type { NumberArray } from "../../source/contract";

/** Where an occurrence is after some layers; between two layers, on the line between its places there. */
export function placeAt({ data, shape }: NumberArray, layer: number, occurrence: number): Pair {
  const [layers, occurrences] = shape as [number, number];
  const at = Math.min(Math.max(layer, 0), layers - 1);
  const before = Math.floor(at);
  const part = at - before;
  const value = (l: number, axis: number) =>
    data[(Math.min(l, layers - 1) * occurrences + occurrence) * 2 + axis] ?? Number.NaN;
  return [0, 1].map((axis) => value(before, axis) * (1 - part) + value(before + 1, axis) * part) as unknown as Pair;
}

/** Two axes with one unit, so that distances are what they look like, around all points of a projection. */
export function axesOf(
  { data }: NumberArray,
  width: number,
  height: number,
  labels: readonly [string, string],
): [Axis, Axis] {
  const ends = [0, 1].map((axis) => {
    const values = data.filter((value, i) => i % 2 === axis && Number.isFinite(value));
    const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 0];
    return { middle: (least + most) / 2, span: (most - least) * 1.16 };
  }) as [{ middle: number; span: number }, { middle: number; span: number }];
  const unit =
    Math.max(ends[0].span / Math.max(width, 1), ends[1].span / Math.max(height, 1)) || 1 / Math.max(width, height, 1);
  return [axis(ends[0].middle, unit * width, labels[0]), axis(ends[1].middle, unit * height, labels[1])];
}

function axis(middle: number, span: number, label: string): Axis {
  const domain: Pair = [middle - span / 2, middle + span / 2];
  const ticks = scaleLinear().domain(domain).ticks(5);
  const step = Math.abs((ticks[1] ?? 1) - (ticks[0] ?? 0));
  const digits = Math.min(Math.max(Math.ceil(-Math.log10(step) - 1e-9), 0), 6);
  return { kind: "linear", domain, label, ticks, format: (value) => minus(value.toFixed(digits)) };
}

/** Which of some places is nearest to a point, at most so many pixels away; null: none. */
export function nearest(places: readonly Pair[], x: number, y: number, reach: number): number | null {
  let found: number | null = null;
  let least = reach;
  places.forEach(([px, py], i) => {
    const distance = Math.hypot(px - x, py - y);
    if (distance <= least) [found, least] = [i, distance];
  });
  return found;
}

export interface Label {
  number: number;
  x: number;
  y: number;
  anchor: "start" | "middle" | "end";
  text: string;
}

type Box = readonly [left: number, top: number, right: number, bottom: number];

const BESIDE = [
  [10, 4, "start"],
  [-10, 4, "end"],
  [0, -11, "middle"],
  [0, 19, "middle"],
  [8, -7, "start"],
  [8, 15, "start"],
  [-8, -7, "end"],
  [-8, 15, "end"],
] as const;

/**
 * Labels beside their marks where they cover no mark, no other label and no edge, and as little as can be of what else is
 * `drawn`; for which there is no such place, those are left out.
 */
export function labelled(
  ends: readonly { number: number; place: Pair; text: string }[],
  drawn: readonly Pair[],
  within: Box,
): Label[] {
  const taken: Box[] = ends.map(({ place: [x, y] }) => [x - 7, y - 7, x + 7, y + 7]);
  return ends.flatMap(({ number, place: [x, y], text }) => {
    const size = text.length * CHARACTER * 0.92;
    let best: { label: Label; box: Box; covers: number } | null = null;
    for (const [dx, dy, anchor] of BESIDE) {
      const left = x + dx - { start: 0, middle: size / 2, end: size }[anchor];
      const box: Box = [left, y + dy - 11, left + size, y + dy + 3];
      const inside = box[0] >= within[0] && box[1] >= within[1] && box[2] <= within[2] && box[3] <= within[3];
      if (!inside || taken.some((other) => overlap(box, other))) continue;
      const covers = drawn.filter((point) => covered(point, box)).length;
      if (!best || covers < best.covers) best = { label: { number, x: x + dx, y: y + dy, anchor, text }, box, covers };
    }
    if (!best) return [];
    taken.push(best.box);
    return [best.label];
  });
}

function covered([x, y]: Pair, box: Box): boolean {
  return x > box[0] && x < box[2] && y > box[1] && y < box[3];
}

function overlap(a: Box, b: Box): boolean {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}
