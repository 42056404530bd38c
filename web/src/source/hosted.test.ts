import { afterEach, describe, expect, it, vi } from "vitest";
import { SourceError } from "./contract";
import { Hosted } from "./hosted";

const CONTENT = Uint8Array.from({ length: 100 }, (_, at) => at);

/** A host with one file; `ranges`: whether it knows them. Tells what it was asked. */
function host(ranges: boolean, size?: number): (string | null)[] {
  const asked: (string | null)[] = [];
  vi.stubGlobal("fetch", async (url: string, { headers }: { headers: Record<string, string> }) => {
    const range = headers.Range ?? null;
    asked.push(range);
    if (url !== "https://host/page/trace/c.0")
      return new Response(null, { status: url.endsWith("denied") ? 403 : 404 });
    if (!range || !ranges)
      return new Response(CONTENT, { headers: { "Content-Length": String(size ?? CONTENT.length) } });
    const [, from, to] = /^bytes=(\d*)-(\d*)$/.exec(range) as unknown as [string, string, string];
    return new Response(from ? CONTENT.slice(Number(from), Number(to) + 1) : CONTENT.slice(-Number(to)), {
      status: 206,
    });
  });
  return asked;
}

afterEach(() => vi.unstubAllGlobals());

describe.each([
  ["that knows ranges", true],
  ["that sends whole files", false],
])("a host %s", (_, ranges) => {
  it("gives files and parts of them", async () => {
    const asked = host(ranges);
    const store = new Hosted("https://host/page/");
    expect(await store.getRange("/trace/c.0", { suffixLength: 3 })).toEqual(CONTENT.slice(97));
    expect(await store.getRange("/trace/c.0", { offset: 10, length: 5 })).toEqual(CONTENT.slice(10, 15));
    expect(asked).toEqual(ranges ? ["bytes=-3", "bytes=10-14"] : ["bytes=-3"]);
    expect(await store.get("/trace/c.0")).toEqual(CONTENT);
  });

  it("says what is not there, and what goes wrong", async () => {
    host(ranges);
    const store = new Hosted("https://host/page/");
    expect(await store.get("/trace/zarr.json")).toBeUndefined();
    expect(await store.getRange("/nothing", { suffixLength: 3 })).toBeUndefined();
    await expect(store.get("/denied")).rejects.toThrow("answered 403");
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("failed to fetch")));
    await expect(store.get("/trace/c.0")).rejects.toMatchObject({
      kind: "lost",
      message: expect.stringContaining("does not answer"),
    });
  });
});

it("a host that sends whole files is refused where they are large", async () => {
  host(false, 100 << 20);
  await expect(new Hosted("https://host/page/").getRange("/trace/c.0", { suffixLength: 3 })).rejects.toThrow(
    SourceError,
  );
});
