// Unpacks a saved page: style, script and files are gzip, sixteen bits in each letter.
(async () => {
  const unpack = async (name) => {
    const { textContent: letters, dataset } = document.getElementById(`packed-${name}`);
    const bytes = new Uint8Array(Number(dataset.bytes) + 1);
    for (let i = 0, at = 0; i < letters.length; i++) {
      const letter = letters[i] === "~" ? letters.charCodeAt(++i) ^ 0x8000 : letters.charCodeAt(i);
      bytes[at++] = letter;
      bytes[at++] = letter >> 8;
    }
    const plain = new Blob([bytes.subarray(0, dataset.bytes)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain).arrayBuffer();
  };
  const add = async (name, element) => {
    element.textContent = new TextDecoder().decode(await unpack(name));
    document.head.append(element);
  };

  const { look } = document.getElementById("packed-files").dataset;
  globalThis.saccadeSaved = { files: await unpack("files"), look };
  await add("style", document.createElement("style"));
  await add("page", Object.assign(document.createElement("script"), { type: "module" }));
})().catch((error) => {
  const old = "DecompressionStream" in globalThis ? "" : " It needs a browser of 2023 or later.";
  document.getElementById("saccade").textContent = `This page could not be unpacked.${old} (${error})`;
});
