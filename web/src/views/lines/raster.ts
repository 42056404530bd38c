/**
 * Lines as pixels, without the browser's own drawing: where that has no graphics card it takes a tenth of a millisecond
 * for each line, and there are thousands.
 *
 * Every line runs from the left edge to the right one on the same curve, stretched: y = from + (to - from) s(x). So a
 * line is a loop over columns, and in each one the pixels between two heights, those at the ends in part. Light is added
 * up in single precision: lines too weak to be seen by themselves are seen where many of them meet.
 */

/** Colours and opacities along a line: red, green, blue from 0 to 255 and opacity from 0 to 1, for each column. */
export type Ink = Float32Array;

/** A curve that leaves and arrives level, at each of `count` columns' middles, from 0 to 1; see `bend` in `draw.ts`. */
export function curveOf(count: number, bend: number): Float32Array {
  return Float32Array.from({ length: count }, (_, column) => heightAt((column + 0.5) / count, bend));
}

/** The height of the Bézier curve (0, 0) (bend, 0) (1 - bend, 1) (1, 1) above x, by bisection. */
function heightAt(x: number, bend: number): number {
  let [low, high] = [0, 1];
  for (let step = 0; step < 30; step++) {
    const t = (low + high) / 2;
    const there = 3 * (1 - t) * (1 - t) * t * bend + 3 * (1 - t) * t * t * (1 - bend) + t * t * t;
    if (there < x) low = t;
    else high = t;
  }
  return low * low * (3 - 2 * low);
}

/** A picture of lines. Lengths are in its pixels. */
export class Raster {
  /** Red, green, blue times opacity, and opacity; column after column, as lines are drawn. */
  private readonly light: Float32Array;
  private readonly curve: Float32Array;
  private readonly slope: Float32Array;

  constructor(
    readonly width: number,
    readonly height: number,
    bend: number,
  ) {
    this.light = new Float32Array(width * height * 4);
    this.curve = curveOf(width, bend);
    this.slope = this.curve.map((_, x) => {
      const [before, after] = [Math.max(x - 1, 0), Math.min(x + 1, width - 1)];
      return ((this.curve[after] as number) - (this.curve[before] as number)) / Math.max(after - before, 1);
    });
  }

  clear(): void {
    this.light.fill(0);
  }

  /** Draw a line over what is there, from a height at the left edge to one at the right. */
  stroke(left: number, right: number, thickness: number, opacity: number, ink: Ink): void {
    const { light, curve, slope, width, height } = this;
    const rise = right - left;
    for (let x = 0; x < width; x++) {
      const strength = opacity * (ink[x * 4 + 3] as number);
      if (strength === 0) continue;
      const steep = rise * (slope[x] as number);
      const half = (thickness / 2) * Math.sqrt(1 + steep * steep);
      const middle = left + rise * (curve[x] as number);
      const low = Math.max(middle - half, 0);
      const high = Math.min(middle + half, height);
      const red = ink[x * 4] as number;
      const green = ink[x * 4 + 1] as number;
      const blue = ink[x * 4 + 2] as number;
      const first = Math.trunc(low);
      let at = (x * height + first) * 4;
      for (let y = first; y < high; y++, at += 4) {
        const covered = Math.min(high, y + 1) - Math.max(low, y);
        const share = strength * covered;
        light[at] = (light[at] as number) + (red - (light[at] as number)) * share;
        light[at + 1] = (light[at + 1] as number) + (green - (light[at + 1] as number)) * share;
        light[at + 2] = (light[at + 2] as number) + (blue - (light[at + 2] as number)) * share;
        light[at + 3] = (light[at + 3] as number) + (1 - (light[at + 3] as number)) * share;
      }
    }
  }

  /** What was drawn, as a canvas takes it: RGBA, not multiplied by its opacity. */
  pixels(): Uint8ClampedArray<ArrayBuffer> {
    const { light, width, height } = this;
    const pixels = new Uint8ClampedArray(light.length);
    for (let x = 0, from = 0; x < width; x++) {
      for (let y = 0; y < height; y++, from += 4) {
        const opacity = light[from + 3] as number;
        if (opacity === 0) continue;
        const to = (y * width + x) * 4;
        pixels[to] = (light[from] as number) / opacity;
        pixels[to + 1] = (light[from + 1] as number) / opacity;
        pixels[to + 2] = (light[from + 2] as number) / opacity;
        pixels[to + 3] = opacity * 255;
      }
    }
    return pixels;
  }
}
