/** The files of a page that is one file: a parcel of them, in memory. */
import type { NumberArray, Source } from "./contract";
import { unpack } from "./parcel";
import { StoredSource } from "./stored";

/** Answers from a parcel whose arrays are files by their paths. */
export function packed(parcel: ArrayBuffer): Source {
  const files = unpack<Record<string, NumberArray<Uint8Array>>>(parcel);
  return new StoredSource({ get: (key) => files[key.slice(1)]?.data });
}
