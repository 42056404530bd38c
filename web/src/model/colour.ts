/**
 * Weights as colours: palettes whose steps look equally far apart, and the tone that places a weight on one.
 *
 * A palette runs from nothing to the largest weight and brightens steadily, so that brightness alone carries the order:
 * it is read without colour vision, and printed grey. Differences have a palette of their own, neutral at zero, blue and
 * orange on its sides, as bright on one as on the other.
 *
 * A scale is a table of colours and how a weight finds its place in it; a shader and a loop in JavaScript read the same one.
 */
import { interpolateCividis, interpolateViridis } from "d3-scale-chromatic";
import type { PALETTES, TONES } from "../look.svelte";

export type Colour = readonly [red: number, green: number, blue: number];
export type PaletteName = (typeof PALETTES)[number];
export type Tone = (typeof TONES)[number];

/** The stops of `src/saccade/views/ramp.py`, so that a terminal, a picture and the page agree. */
export const SACCADE: readonly Colour[] = [
  [29, 34, 54],
  [43, 68, 112],
  [33, 117, 138],
  [58, 172, 145],
  [160, 215, 110],
  [253, 243, 160],
];

/** Colours of a table: so many that its steps are not seen, and odd, so that zero is the middle one of differences. */
export const ENTRIES = 1025;

/** How far below the largest weight a logarithmic scale ends. */
const DECADES = 4;

// Greys: CIE lightness at the ends. Differences, in OKLab: lightness, and chroma with hue at both ends.
const GREYS = [12, 97] as const;
const NEUTRAL = 0.3;
const BRIGHT = 0.82;
const LESS = { chroma: 0.115, hue: 245 };
const MORE = { chroma: 0.135, hue: 65 };

/** A palette's colour at a place from 0 to 1. */
export function paletteColour(name: PaletteName, place: number): Colour {
  const t = Math.min(Math.max(place, 0), 1);
  if (name === "viridis") return parsed(interpolateViridis(t));
  if (name === "cividis") return parsed(interpolateCividis(t));
  if (name === "greys") return grey(GREYS[0] + (GREYS[1] - GREYS[0]) * t);
  const scaled = t * (SACCADE.length - 1);
  const lower = Math.min(Math.floor(scaled), SACCADE.length - 2);
  const [a, b] = [SACCADE[lower] as Colour, SACCADE[lower + 1] as Colour];
  const mix = (i: 0 | 1 | 2) => Math.round(a[i] + (b[i] - a[i]) * (scaled - lower));
  return [mix(0), mix(1), mix(2)];
}

/** A difference's colour at a place from -1 (less) through 0 (neutral) to 1 (more). */
export function divergingColour(place: number): Colour {
  const t = Math.min(Math.max(place, -1), 1);
  const { chroma, hue } = t < 0 ? LESS : MORE;
  const size = Math.abs(t);
  const angle = (hue * Math.PI) / 180;
  return fromOklab(
    NEUTRAL + (BRIGHT - NEUTRAL) * size,
    chroma * size * Math.cos(angle),
    chroma * size * Math.sin(angle),
  );
}

/** CIE lightness of a colour, 0 to 100. */
export function lightness(colour: Colour): number {
  const [red, green, blue] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  }) as [number, number, number];
  const y = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return y > 216 / 24389 ? 116 * Math.cbrt(y) - 16 : (y * 24389) / 27;
}

/** What to write in on top of a colour. */
export function inkOn(colour: Colour): string {
  return lightness(colour) > 52 ? "rgb(20 24 40)" : "rgb(245 245 245)";
}

/** What weights there are: what a scale is made for. Of differences, their sizes. */
export class Tally {
  largest = 0;
  /** The smallest that is more than nothing. */
  least = Number.POSITIVE_INFINITY;
  private seen = 0;
  private every = 1;
  private kept = 0;
  private readonly values: Float32Array;

  /** At most this many are remembered for ranks: enough for a per mille; of more, every second, fourth, ... */
  private static readonly REMEMBERED = 1 << 16;

  /** `ranks`: whether it is to be known how many are smaller than another. */
  constructor(ranks = true) {
    this.values = new Float32Array(ranks ? Tally.REMEMBERED : 0);
  }

  add(weight: number): void {
    this.addAll([weight], 0, 1);
  }

  /** Those from one place to another, but where `skipped` says so. One loop, for there may be a million of them. */
  addAll(weights: ArrayLike<number>, from: number, to: number, skipped: Uint8Array | null = null): void {
    const ranks = this.values.length > 0;
    let { largest, least } = this;
    for (let i = from; i < to; i++) {
      const size = Math.abs(weights[i] as number);
      if (!(size > 0 && size < Number.POSITIVE_INFINITY) || skipped?.[i - from]) continue;
      if (size > largest) largest = size;
      if (size < least) least = size;
      if (ranks && this.seen++ % this.every === 0) this.remember(size);
    }
    this.largest = largest;
    this.least = least;
  }

  /** What was remembered, ascending. */
  sorted(): Float32Array {
    return this.values.slice(0, this.kept).sort();
  }

  private remember(size: number): void {
    if (this.kept === this.values.length) {
      this.kept /= 2;
      for (let i = 0; i < this.kept; i++) this.values[i] = this.values[2 * i] as number;
      this.every *= 2;
    }
    this.values[this.kept++] = size;
  }
}

/** Where weights are in a table of colours. */
export interface Scale {
  readonly tone: Tone;
  /** Of differences: the table's middle is zero. */
  readonly signed: boolean;
  /** The weights at the table's ends. Linear scales begin with 0. */
  readonly floor: number;
  readonly top: number;
  /** Whether places follow logarithms: else they follow the weights. */
  readonly logarithmic: boolean;
  /** RGBA, ENTRIES of them. */
  readonly table: Uint8Array;
  /** Of ranks: which share of the weights is smaller, at each place from floor to top. null for other tones. */
  readonly ranks: Float32Array | null;
}

/** The scale for these weights. */
export function scaleOf(tally: Tally, tone: Tone, palette: PaletteName, signed: boolean): Scale {
  const largest = tally.largest || 1;
  if (tone === "rank" && tally.least < largest) {
    const ranks = ranksOf(tally.sorted(), tally.least, largest);
    return {
      tone,
      signed,
      floor: tally.least,
      top: largest,
      logarithmic: true,
      ranks,
      table: table(palette, signed, ranks),
    };
  }
  const top = roundedUp(largest);
  const logarithmic = tone === "log";
  const floor = logarithmic ? top / 10 ** DECADES : 0;
  return { tone, signed, floor, top, logarithmic, ranks: null, table: table(palette, signed, null) };
}

/** Where a weight's size is between the scale's ends, 0 to 1: where its colour is in the table. */
export function placeOf(scale: Scale, weight: number): number {
  const size = Math.abs(weight);
  if (!(size > scale.floor)) return 0;
  if (size >= scale.top) return 1;
  return scale.logarithmic ? Math.log(size / scale.floor) / Math.log(scale.top / scale.floor) : size / scale.top;
}

/** Where a weight is on the legend, on which colours are evenly spaced. */
export function legendPlaceOf(scale: Scale, weight: number): number {
  const place = placeOf(scale, weight);
  const share = scale.ranks ? (scale.ranks[Math.round(place * (ENTRIES - 1))] as number) : place;
  return scale.signed ? 0.5 + (Math.sign(weight) * share) / 2 : share;
}

/** The entry of the table that has a weight's colour. */
export function entryOf(scale: Scale, weight: number): number {
  const place = placeOf(scale, weight);
  return Math.round((scale.signed ? 0.5 + (Math.sign(weight) * place) / 2 : place) * (ENTRIES - 1));
}

export function colourOf(scale: Scale, weight: number): Colour {
  const at = entryOf(scale, weight) * 4;
  return [scale.table[at] as number, scale.table[at + 1] as number, scale.table[at + 2] as number];
}

/** Weights to write at the legend, ascending, with their places on it. */
export function ticksOf(scale: Scale): { weight: number; place: number }[] {
  const sizes = scale.ranks
    ? quartiles(scale)
    : scale.logarithmic
      ? decades(scale)
      : linear(scale.top, scale.signed ? 2 : 5);
  const every = scale.logarithmic ? 2 : 1; // two sides have half the room each
  const some = sizes.filter((size, i) => size > 0 && (sizes.length - 1 - i) % every === 0);
  const weights = scale.signed ? [...some.map((size) => -size).reverse(), 0, ...some] : sizes;
  return weights.map((weight) => ({ weight, place: legendPlaceOf(scale, weight) }));
}

/** The next number at which a scale ends well: twentieths, then 1, 2 or 5 of a power of ten. */
export function roundedUp(largest: number): number {
  if (largest > 0.05) return Math.ceil(largest * 20 - 1e-6) / 20;
  const power = 10 ** Math.floor(Math.log10(largest));
  const [least] = [1, 2, 5, 10].filter((step) => step * power >= largest * (1 - 1e-6));
  return Number(((least ?? 10) * power).toPrecision(1));
}

/** Round numbers from 0 to `top`: at least one beyond 0, and at most `most`. */
function linear(top: number, most: number): number[] {
  const power = 10 ** Math.floor(Math.log10(top) - 1);
  const step = ([1, 2, 5, 10, 20, 50].find((times) => top / (times * power) < most + 1 - 1e-6) ?? 50) * power;
  return Array.from({ length: Math.floor(top / step + 1e-6) + 1 }, (_, i) => Number((i * step).toPrecision(6)));
}

function decades(scale: Scale): number[] {
  return Array.from({ length: DECADES + 1 }, (_, i) => scale.top / 10 ** (DECADES - i));
}

/** The weights below which a quarter, a half, ... of the weights lie. */
function quartiles(scale: Scale): number[] {
  const ranks = scale.ranks as Float32Array;
  return [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const entry = share === 0 ? 0 : ranks.findIndex((rank) => rank >= share - 1e-6);
    return scale.floor * (scale.top / scale.floor) ** ((entry < 0 ? ENTRIES - 1 : entry) / (ENTRIES - 1));
  });
}

/** Which share of the values is smaller, at evenly spaced logarithms from the least to the largest: 0 first, 1 last. */
function ranksOf(values: Float32Array, least: number, largest: number): Float32Array {
  const ranks = new Float32Array(ENTRIES);
  const ratio = Math.log(largest / least) / (ENTRIES - 1);
  let below = 0;
  for (let entry = 0; entry < ENTRIES; entry++) {
    const value = least * Math.exp(entry * ratio);
    while (below < values.length && (values[below] as number) < value) below++;
    ranks[entry] = below / values.length;
  }
  ranks[ENTRIES - 1] = 1;
  return ranks;
}

function table(palette: PaletteName, signed: boolean, ranks: Float32Array | null): Uint8Array {
  const colours = new Uint8Array(ENTRIES * 4);
  for (let entry = 0; entry < ENTRIES; entry++) {
    const place = entry / (ENTRIES - 1);
    const size = signed ? Math.abs(2 * place - 1) : place;
    const share = ranks ? (ranks[Math.round(size * (ENTRIES - 1))] as number) : size;
    const colour = signed ? divergingColour(share * Math.sign(place - 0.5)) : paletteColour(palette, share);
    colours.set([...colour, 255], entry * 4);
  }
  return colours;
}

/** d3 writes a colour as "#rrggbb" or "rgb(r, g, b)". */
function parsed(text: string): Colour {
  if (!text.startsWith("#")) return text.match(/\d+/g)?.map(Number) as unknown as Colour;
  const value = Number.parseInt(text.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function grey(light: number): Colour {
  const y = light > 8 ? ((light + 16) / 116) ** 3 : (light * 27) / 24389;
  const part = encoded(y);
  return [part, part, part];
}

/** OKLab to sRGB (Ottosson 2020, "A perceptual color space for image processing"). */
function fromOklab(light: number, a: number, b: number): Colour {
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    encoded(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    encoded(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    encoded(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

/** Linear light as a byte of sRGB. */
function encoded(light: number): number {
  const share = light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055;
  return Math.round(Math.min(Math.max(share, 0), 1) * 255);
}
