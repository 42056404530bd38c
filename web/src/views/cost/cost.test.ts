import { describe, expect, it } from "vitest";
import type { CostAnswer } from "../../source/contract";
import { Cost, decades, entries, fitted, lengthOf, longestThatFits, powers, storedBytes } from "./cost";

const LENGTHS = [128, 256, 512, 1024, 2048];
const along = (curve: (n: number) => number) => LENGTHS.map((n): [number, number] => [n, curve(n)]);

describe("formulas", () => {
  it("counts a stored pattern", () => {
    expect(entries(12, 131072)).toBe(12 * 2 ** 34);
    expect(storedBytes(12, 4, 131072)).toBe(824_633_720_832);
    expect(entries(96, 2048, 96)).toBe(38_654_705_664);
  });

  it("says the longest text that fits, and one token more does not", () => {
    const longest = longestThatFits(12, 4, 80e9);
    expect(storedBytes(12, 4, longest)).toBeLessThanOrEqual(80e9);
    expect(storedBytes(12, 4, longest + 1)).toBeGreaterThan(80e9);
  });
});

describe("fitted", () => {
  it("finds the factors that made the points", () => {
    const curve = fitted(
      along((n) => 2e-9 * n * n + 3e-7 * n + 1e-5),
      [2, 1, 0],
    );
    expect(curve?.terms.map((term) => term.power)).toEqual([2, 1, 0]);
    expect(curve?.at(2 ** 20)).toBeCloseTo(2e-9 * 2 ** 40 + 3e-7 * 2 ** 20 + 1e-5, 3);
    expect(curve?.worst).toBeLessThan(1e-6);
    expect(curve?.measured).toEqual([128, 2048]);
  });

  it("takes no power off: points below a parabola give factors that are not negative", () => {
    const curve = fitted(
      along((n) => 2e-9 * n * n - 1e-7 * n + 1e-4),
      [2, 1, 0],
    );
    expect(curve?.terms.every((term) => term.factor >= 0)).toBe(true);
    expect(curve?.worst).toBeGreaterThan(0);
  });

  it("keeps the first power though a straight line would do", () => {
    const curve = fitted(
      along((n) => 1e-6 * n),
      [2, 1, 0],
    );
    expect(curve?.terms[0]?.factor).toBeGreaterThan(0);
  });

  it("draws no curve from two points, or from what is no cost", () => {
    expect(fitted([], [2, 1, 0])).toBeNull();
    expect(
      fitted(
        [
          [100, 5],
          [200, 20],
        ],
        [2, 1, 0],
      ),
    ).toBeNull();
    expect(
      fitted(
        [
          [100, 5],
          [200, 20],
          [400, 0],
        ],
        [1, 0],
      ),
    ).toBeNull();
    expect(
      fitted(
        [
          [100, 5],
          [200, 20],
          [400, 80],
        ],
        [2, 1, 0],
      )?.at(800),
    ).toBeCloseTo(320, 9);
  });

  it("has fewer powers than points: noise in three is not followed", () => {
    const terms = fitted(
      [
        [1, 1],
        [2, 4.4],
        [4, 15],
      ],
      [2, 1, 0],
    )?.terms.filter(({ factor }) => factor > 0);
    expect(terms?.length).toBeLessThan(3);
  });

  it("counts small points as much as large ones", () => {
    const points: [number, number][] = [
      [10, 1e-6],
      [100, 1e-4],
      [1000, 1.2e-2],
    ];
    expect(fitted(points, [2])?.worst).toBeLessThan(0.16);
  });
});

const ANSWER: CostAnswer = {
  conditions: "4 heads of width 32, 2 threads, float32",
  heads: 4,
  width: 32,
  itemsize: 4,
  points: [
    { length: 512, ours: { seconds: 0.004, bytes: 2000 }, stored: { seconds: 0.008, bytes: 8e6 } },
    { length: 256, ours: { seconds: 0.001, bytes: 1000 }, stored: { seconds: 0.002, bytes: 2e6 } },
    { length: 1024, ours: { seconds: 0.016, bytes: 4000 }, stored: { seconds: 0.032, bytes: 3e7 } },
    { length: 4096, ours: { seconds: 0.256, bytes: 16000 }, stored: null },
  ],
};

describe("Cost", () => {
  const cost = new Cost(ANSWER.heads, ANSWER.itemsize, ANSWER);

  it("says what was measured, and where a line is beyond it", () => {
    expect(cost.at("ours", "seconds", 1024)).toEqual({ value: 0.016, origin: "measured" });
    expect(cost.at("ours", "seconds", 2048)?.origin).toBe("between");
    expect(cost.at("ours", "seconds", 8192)?.origin).toBe("extrapolated");
    expect(cost.at("ours", "bytes", 8192)?.value).toBeCloseTo(32000, 3);
    expect(cost.at("stored", "seconds", 4096)).toEqual({ value: expect.closeTo(0.512, 6), origin: "extrapolated" });
  });

  it("has a stored pattern's bytes from the formula, whatever was measured", () => {
    expect(cost.at("stored", "bytes", 256)).toEqual({ value: 4 * 256 * 256 * 4, origin: "formula" });
  });

  it("says a measured point where there are too few for a line", () => {
    const few = new Cost(4, 4, { ...ANSWER, points: ANSWER.points.slice(0, 2) });
    expect(few.curve("ours", "seconds")).toBeNull();
    expect(few.at("ours", "seconds", 512)).toEqual({ value: 0.004, origin: "measured" });
    expect(few.at("ours", "seconds", 1024)).toBeNull();
  });

  it("without an answer knows the formula only", () => {
    const bare = new Cost(12, 4, null);
    expect(bare.at("stored", "bytes", 1024)?.value).toBe(12 * 2 ** 20 * 4);
    expect(bare.at("ours", "bytes", 1024)).toBeNull();
    expect(bare.at("stored", "seconds", 1024)).toBeNull();
  });
});

describe("axes", () => {
  it("has powers in a range, both ends counted", () => {
    expect(powers(4, [16, 1024])).toEqual([16, 64, 256, 1024]);
    expect(powers(10, [1, 1000])).toEqual([1, 10, 100, 1000]);
  });

  it("ends at powers of ten", () => {
    expect(decades([20, 5000])).toEqual([10, 10_000]);
    expect(decades([100])).toEqual([100, 1000]);
  });

  it("reads a typed length", () => {
    expect(lengthOf("131,072")).toBe(131072);
    expect(lengthOf("99999999")).toBe(2 ** 20);
    expect(lengthOf("0")).toBeNull();
    expect(lengthOf("many")).toBeNull();
  });
});
