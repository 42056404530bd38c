import { expect, it } from "vitest";
import { DEPTHS, exact, fullAt, holesPath, layersOf, length, minusPath, tableRows } from "./vector";

it("gives zero no colour, and each sign its own", () => {
  const layers = layersOf([0, 1, -1, 0.5, 3], 1);
  expect(layers).toEqual([
    { sign: 1, opacity: 1, path: "M1 0h1v1h-1zM4 0h1v1h-1z" },
    { sign: -1, opacity: 1, path: "M2 0h1v1h-1z" },
    { sign: 1, opacity: 0.5, path: "M3 0h1v1h-1z" },
  ]);
  expect(layersOf([Number.NaN, 0.4 / DEPTHS], 1)).toEqual([]);
  expect(minusPath([1, -2, -0.1], 2)).toBe("M1.34 .5h.32");
  expect(holesPath([1, Number.NaN])).toBe("M1 0l1 1M2 0l-1 1");
});

it("has the full colour at the largest, and in a long strip below its few largest", () => {
  expect(fullAt([1, -3, 2])).toBe(3);
  expect(fullAt([0, 0])).toBe(1);
  expect(fullAt([])).toBe(1);
  const long = Array.from({ length: 100 }, () => 1);
  long[7] = -50;
  expect(fullAt(long)).toBe(1);
});

it("writes the shortest decimal that is the number", () => {
  expect(exact(Math.fround(0.1))).toBe("0.1");
  expect(exact(Math.fround(-1 / 3))).toBe("−0.33333334");
  expect(exact(1 / 3)).toBe("0.333333333");
  expect(exact(Number.NaN)).toBe("not a number");
  expect(exact(-Infinity)).toBe("−∞");
});

it("measures, and lays numbers out in rows", () => {
  expect(length([3, 4])).toBe(5);
  expect(tableRows([1, 2, 3], 2)).toEqual([
    { start: 0, cells: [1, 2] },
    { start: 2, cells: [3] },
  ]);
});
