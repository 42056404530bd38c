import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { FileSystemStore } from "@zarrita/storage";
import { describe, expect, it } from "vitest";
import { openTrace, TraceError } from "./trace";

const tests = fileURLToPath(new URL("../../tests/trace/", import.meta.url));
const golden = JSON.parse(readFileSync(`${tests}golden.json`, "utf8")) as {
  sites: string[][];
  labels: string[];
  arrays: Record<string, unknown>;
};
const open = () => openTrace(new FileSystemStore(`${tests}golden.zarr`));

/** Nested lists as one. */
const flat = (values: unknown): unknown[] => (Array.isArray(values) ? values.flatMap(flat) : [values]);

describe("the golden trace", () => {
  it("says what it is", async () => {
    const trace = await open();
    expect(trace.metadata).toMatchObject({ version: 1, complete: true, entries: 1, model: "Model", keep: "qkv" });
    expect((await trace.entry(0)).sites).toEqual(golden.sites[0]);
  });

  it.each(Object.keys(golden.arrays))("holds the numbers of %s", async (path) => {
    const entry = await (await open()).entry(0);
    const { data } = await entry.read(path);
    const found = Array.from(data as ArrayLike<unknown>, (value) =>
      typeof value === "string" || typeof value === "boolean" ? value : Number(value),
    );
    expect(found).toEqual(
      flat(golden.arrays[path]).map((value) => (typeof found[0] === "boolean" ? Boolean(value) : value)),
    );
  });

  it("gives a part of an array", async () => {
    const entry = await (await open()).entry(0);
    const whole = await entry.read("stacks/0/entropy");
    const part = await entry.read("stacks/0/entropy", [1, 0, 2]);
    const [, , heads, queries] = whole.shape as [number, number, number, number];
    expect(part.shape).toEqual([queries]);
    const start = (heads + 2) * queries;
    expect(Array.from(part.data as Float32Array)).toEqual(
      Array.from(whole.data as Float32Array).slice(start, start + queries),
    );
  });
});

describe("what is no trace", () => {
  it("is refused", async () => {
    await expect(openTrace(new FileSystemStore(tests))).rejects.toThrow(TraceError);
    await expect(openTrace(new Map<`/${string}`, Uint8Array>())).rejects.toThrow("there is no trace");
  });

  it("has no entry that is not there", async () => {
    await expect((await open()).entry(7)).rejects.toThrow(TraceError);
  });
});
