import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import {
  colourOf,
  divergingColour,
  ENTRIES,
  legendPlaceOf,
  lightness,
  paletteColour,
  placeOf,
  roundedUp,
  SACCADE,
  scaleOf,
  Tally,
  ticksOf,
} from "./colour";

function tallyOf(...weights: number[]): Tally {
  const tally = new Tally();
  for (const weight of weights) tally.add(weight);
  return tally;
}

describe("palettes", () => {
  it("has the stops of the terminal and the pictures", () => {
    const ramp = readFileSync(new URL("../../../src/saccade/views/ramp.py", import.meta.url), "utf8");
    const stops = /STOPS = \((.*?)\n\)/s.exec(ramp)?.[1]?.matchAll(/\((\d+), (\d+), (\d+)\)/g) ?? [];
    expect([...stops].map(([, ...parts]) => parts.map(Number))).toEqual(SACCADE);
    expect(paletteColour("saccade", 0)).toEqual(SACCADE[0]);
    expect(paletteColour("saccade", 1)).toEqual(SACCADE.at(-1));
    expect(paletteColour("saccade", 0.1)).toEqual([36, 51, 83]); // half way from the first stop to the second
  });

  it.each(["saccade", "viridis", "cividis", "greys"] as const)("%s brightens steadily, in even steps", (name) => {
    const lights = Array.from({ length: 17 }, (_, i) => lightness(paletteColour(name, i / 16)));
    const steps = lights.slice(1).map((light, i) => light - (lights[i] as number));
    const mean = ((lights[16] as number) - (lights[0] as number)) / 16;
    for (const step of steps) {
      expect(step).toBeGreaterThan(0.3 * mean);
      expect(step).toBeLessThan(1.7 * mean);
    }
  });

  it("is neutral at zero, and as bright on both sides", () => {
    const neutral = divergingColour(0);
    expect(Math.max(...neutral) - Math.min(...neutral)).toBeLessThanOrEqual(1);
    for (const size of [0.25, 0.5, 0.75, 1]) {
      expect(Math.abs(lightness(divergingColour(size)) - lightness(divergingColour(-size)))).toBeLessThan(3.5);
    }
    expect(divergingColour(1)[0]).toBeGreaterThan(divergingColour(1)[2] + 80); // orange
    expect(divergingColour(-1)[2]).toBeGreaterThan(divergingColour(-1)[0] + 80); // blue
  });
});

describe("tones", () => {
  it("ends linear scales well above the largest weight", () => {
    expect([0.372, 0.05, 1, 0.95, 0.03, 0.0012, 1e-5].map(roundedUp)).toEqual([0.4, 0.05, 1, 0.95, 0.05, 0.002, 1e-5]);
    const scale = scaleOf(tallyOf(0.1, 0.37), "linear", "saccade", false);
    expect([scale.floor, scale.top]).toEqual([0, 0.4]);
    expect(placeOf(scale, 0.1)).toBeCloseTo(0.25);
    expect(colourOf(scale, 0.4)).toEqual(SACCADE.at(-1));
  });

  it("writes round numbers at linear scales", () => {
    const at = (top: number) => ticksOf(scaleOf(tallyOf(top), "linear", "greys", false)).map(({ weight }) => weight);
    expect(at(0.15)).toEqual([0, 0.05, 0.1, 0.15]);
    expect(at(1)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect(at(0.35)).toEqual([0, 0.1, 0.2, 0.3]);
    expect(at(2e-5)).toEqual([0, 5e-6, 1e-5, 1.5e-5, 2e-5]);
  });

  it("writes a number at each side of differences", () => {
    for (const top of [0.05, 0.3, 0.35, 0.45, 0.5, 0.9, 1]) {
      const scale = scaleOf(tallyOf(-top, top), "linear", "saccade", true);
      const weights = ticksOf(scale).map(({ weight }) => weight);
      expect(weights.length, `${top}`).toBeOneOf([3, 5]);
      expect(weights[0]).toBe(-(weights.at(-1) as number));
    }
  });

  it("gives each decade of a logarithmic scale the same room", () => {
    const scale = scaleOf(tallyOf(1e-9, 1), "log", "saccade", false);
    expect([1e-4, 1e-3, 1e-2, 0.1, 1].map((weight) => placeOf(scale, weight))).toEqual(
      [0, 0.25, 0.5, 0.75, 1].map((place) => expect.closeTo(place)),
    );
    expect(placeOf(scale, 1e-9)).toBe(0);
  });

  it("places a weight by the share of weights that are smaller", () => {
    const weights = Array.from({ length: 1000 }, (_, i) => 0.01 * 1.003 ** i);
    const scale = scaleOf(tallyOf(...weights), "rank", "saccade", false);
    for (const share of [0.1, 0.5, 0.9]) {
      expect(legendPlaceOf(scale, weights[share * 1000] as number)).toBeCloseTo(share, 2);
    }
    expect(ticksOf(scale)[2]?.weight).toBeCloseTo(weights[500] as number, 3);
  });

  it("tells ranks of weights that are nearly the same", () => {
    const weights = Array.from({ length: 100 }, (_, i) => 1e-5 * (1 + i * 1e-6));
    const scale = scaleOf(tallyOf(...weights), "rank", "saccade", false);
    expect(legendPlaceOf(scale, weights[75] as number)).toBeCloseTo(0.75, 1);
  });

  it("needs no weights, and only one", () => {
    for (const tone of ["linear", "log", "rank"] as const) {
      expect(scaleOf(tallyOf(), tone, "greys", false).top).toBe(1);
      expect(placeOf(scaleOf(tallyOf(0.5), tone, "greys", false), 0.5)).toBe(1);
    }
  });

  it("passes over what is no number, and over nothing", () => {
    const tally = tallyOf(Number.NaN, 0, Number.POSITIVE_INFINITY, 0.25);
    expect([tally.least, tally.largest, [...tally.sorted()]]).toEqual([0.25, 0.25, [0.25]]);
  });

  it("tallies a part of a row, without what is to be skipped", () => {
    const tally = new Tally();
    tally.addAll([9, 0.5, 8, -0.75, 9], 1, 4, new Uint8Array([0, 1, 0]));
    expect([tally.largest, tally.least]).toEqual([0.75, 0.5]);
  });

  it("remembers an even part of many weights", () => {
    const tally = new Tally();
    for (let i = 1; i <= 500_000; i++) tally.add(i);
    const sorted = tally.sorted();
    expect(sorted.length).toBeLessThanOrEqual(1 << 16);
    expect(sorted[Math.floor(sorted.length / 2)]).toBeCloseTo(250_000, -4);
    expect([tally.least, tally.largest]).toEqual([1, 500_000]);
  });

  it("puts the zero of differences in the middle", () => {
    const scale = scaleOf(tallyOf(-0.2, 0.1), "linear", "saccade", true);
    expect([-0.2, 0, 0.2].map((weight) => legendPlaceOf(scale, weight))).toEqual([0, 0.5, 1]);
    expect(scale.table.length).toBe(ENTRIES * 4);
    expect(colourOf(scale, 0.2)).toEqual(divergingColour(1));
    expect(colourOf(scale, 0)).toEqual(divergingColour(0));
    expect(ticksOf(scale).map(({ weight }) => weight)).toEqual(
      [-0.2, -0.1, 0, 0.1, 0.2].map((weight) => expect.closeTo(weight)),
    );
  });
});
