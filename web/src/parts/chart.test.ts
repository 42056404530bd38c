import { describe, expect, it } from "vitest";
import { around, bytes, counted, line, scaleOf, seconds, spread, stacked, thinned } from "./chart";

describe("numbers as people write them", () => {
  it("bytes", () => {
    expect(bytes(824_633_720_832)).toBe("825 GB");
    expect(bytes(0)).toBe("0 bytes");
    expect(bytes(1536)).toBe("1.5 kB");
    expect(bytes(999_999)).toBe("1 MB");
    expect(bytes(12.34e12)).toBe("12.3 TB");
  });

  it("seconds", () => {
    expect(seconds(0.0123)).toBe("12.3 ms");
    expect(seconds(59.99)).toBe("1 min");
    expect(seconds(86400)).toBe("1 day");
    expect(seconds(86400 * 5)).toBe("5 days");
    expect(seconds(31_557_600 * 12)).toBe("12 years");
    expect(seconds(3e-7)).toBe("0.3 µs");
  });

  it("counts", () => {
    expect(counted(2 ** 34)).toBe("17.2 billion");
    expect(counted(1024)).toBe("1,024");
  });
});

describe("spread", () => {
  it("leaves places that have room", () => {
    expect(spread([10, 50, 90], 15, [0, 100])).toEqual([10, 50, 90]);
  });

  it("pushes them apart in their order, within the ends", () => {
    const placed = spread([98, 97, 99], 10, [0, 100]);
    expect(placed).toEqual([90, 80, 100]);
  });

  it("is empty for none", () => {
    expect(spread([], 10, [0, 1])).toEqual([]);
  });
});

describe("thinned", () => {
  it("keeps every so manieth that fits", () => {
    const ticks = Array.from({ length: 9 }, (_, i) => ({ place: i * 10, size: 30 }));
    expect(thinned(ticks, 5).map((tick) => tick.place)).toEqual([0, 40, 80]);
    expect(thinned(ticks.slice(0, 1), 5)).toHaveLength(1);
    expect(thinned([], 5)).toEqual([]);
  });
});

describe("axes", () => {
  it("goes to places and back", () => {
    const scale = scaleOf({ kind: "log", domain: [1, 100], label: "", ticks: [], format: String }, [0, 200]);
    expect(scale.to(10)).toBeCloseTo(100);
    expect(scale.from(100)).toBeCloseTo(10);
  });

  it("has room around values, but not beyond what is possible", () => {
    const axis = around([0.4, 1], "share", 1, [0, 1]);
    expect(axis.domain[1]).toBe(1);
    expect(axis.domain[0]).toBeLessThanOrEqual(0.4);
    expect(around([3, 3], "").domain[0]).toBeLessThan(3);
    expect(around([Number.NaN], "").domain[1]).toBeGreaterThan(0);
  });
});

describe("drawings", () => {
  it("breaks a line where a point is missing", () => {
    expect(
      line([
        [0, 0],
        [1, 1],
        [2, Number.NaN],
        [3, 3],
        [4, 4],
      ]),
    ).toBe("M0.0 0.0L1.0 1.0M3.0 3.0L4.0 4.0");
  });

  it("stacks drawings under their titles", () => {
    const svg = (height: number) =>
      `<svg xmlns="http://www.w3.org/2000/svg" width="100" height="${height}"><rect/></svg>`;
    const both = stacked(
      [
        { title: "a < b", svg: svg(50) },
        { title: "c", svg: svg(20) },
      ],
      "black",
      "white",
    );
    expect(both).toContain('y="34"');
    expect(both).toContain(`y="${50 + 34 + 34}"`);
    expect(both).toContain("a &lt; b");
    expect(both).toMatch(/^<svg[^>]*width="100" height="146"/);
  });
});
