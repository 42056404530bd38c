// Unpacks a saved page: its script and its data are gzip, four bytes in five letters (base 85).
(async () => {
  const letters = "{{letters}}";
  const digit = new Uint8Array(128);
  for (let i = 0; i < 85; i++) digit[letters.charCodeAt(i)] = i;

  const unpack = async (id) => {
    const element = document.getElementById(id);
    const text = element.textContent;
    const bytes = new DataView(new ArrayBuffer((text.length / 5) * 4));
    for (let at = 0; at < text.length; at += 5) {
      let number = 0;
      for (let i = at; i < at + 5; i++) number = number * 85 + digit[text.charCodeAt(i)];
      bytes.setUint32((at / 5) * 4, number);
    }
    const packed = new Blob([bytes.buffer.slice(0, Number(element.dataset.bytes))]);
    return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  };

  globalThis.saccadeSaved = { files: await unpack("files"), look: document.getElementById("files").dataset.look };
  const script = document.createElement("script");
  script.type = "module";
  script.textContent = new TextDecoder().decode(await unpack("page"));
  document.body.append(script);
})().catch((error) => {
  const old = "DecompressionStream" in globalThis ? "" : " It needs a browser of 2023 or later.";
  document.getElementById("saccade").textContent = `This page could not be unpacked.${old} (${error})`;
});
