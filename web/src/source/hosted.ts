/**
 * The files of a page that was exported to a folder, from whatever host they lie on. A host that knows byte ranges sends
 * the chunks that are wanted; from one that does not, whole files come, and small ones are kept.
 */
import type { AsyncReadable, RangeQuery } from "@zarrita/storage";
import { type Source, SourceError } from "./contract";
import { StoredSource } from "./stored";

/** Bytes of files that came whole though a part was wanted: each, and all together. */
const LARGEST = 64 << 20;

/** Answers from the files at an address, which ends with a slash. */
export function hostedSource(base: string): Source {
  return new StoredSource(new Hosted(base));
}

export class Hosted implements AsyncReadable {
  private readonly whole = new Map<string, Promise<Uint8Array | undefined>>();
  private bytes = 0;

  constructor(private readonly base: string) {}

  async get(key: string): Promise<Uint8Array | undefined> {
    return bytesOf(await this.fetch(key));
  }

  async getRange(key: string, range: RangeQuery): Promise<Uint8Array | undefined> {
    const whole = await this.whole.get(key);
    if (whole) return cut(whole, range);
    const said =
      "suffixLength" in range ? `-${range.suffixLength}` : `${range.offset}-${range.offset + range.length - 1}`;
    const response = await this.fetch(key, { Range: `bytes=${said}` });
    if (!response || response.status === 206) return bytesOf(response);
    return this.keep(key, response).then((content) => content && cut(content, range));
  }

  private keep(key: string, response: Response): Promise<Uint8Array | undefined> {
    const length = Number(response.headers.get("Content-Length") ?? 0);
    if (length > LARGEST) {
      void response.body?.cancel();
      throw new SourceError(
        `The host of this page sends whole files only, and one of them has ${Math.round(length / 1e6)} MB: a host that knows range requests is needed.`,
      );
    }
    if (this.bytes + length > LARGEST) {
      this.whole.clear();
      this.bytes = 0;
    }
    this.bytes += length;
    const content = bytesOf(response);
    this.whole.set(key, content);
    content.catch(() => this.whole.delete(key));
    return content;
  }

  private async fetch(key: string, headers: Record<string, string> = {}): Promise<Response | undefined> {
    const response = await fetch(`${this.base}${key.replace(/^\//, "")}`, { headers }).catch(() => {
      throw new SourceError("The host of this page does not answer.", "lost");
    });
    if (response.ok) return response;
    if (response.status === 404) return undefined;
    throw new SourceError(`The host of this page answered ${response.status} for ${key}.`);
  }
}

async function bytesOf(response: Response | undefined): Promise<Uint8Array | undefined> {
  return response && new Uint8Array(await response.arrayBuffer());
}

function cut(content: Uint8Array, range: RangeQuery): Uint8Array {
  if ("suffixLength" in range) return content.slice(Math.max(content.length - range.suffixLength, 0));
  return content.slice(range.offset, range.offset + range.length);
}
