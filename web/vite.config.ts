/**
 * Two builds of one page: `vite build` makes the served page, split so that a view is fetched when it is opened;
 * `vite build --mode embed` makes one file, embed.js, for saved pages and notebooks.
 */
import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

const PAGE = "../src/saccade/explorer/page";
// Codecs of zarrita that no trace uses, 1.2 MB of them; a page that is one file has no packed chunks at all.
const UNUSED = ["blosc", "lz4"];
const codecs = (names: string[]) =>
  names.map((name) => ({
    find: `numcodecs/${name}`,
    replacement: fileURLToPath(new URL("src/source/codec.ts", import.meta.url)),
  }));

export default defineConfig(({ mode }) => ({
  plugins: [svelte()],
  base: "./",
  resolve: { alias: codecs(mode === "embed" ? [...UNUSED, "zstd"] : UNUSED) },
  build:
    mode === "embed"
      ? {
          outDir: `${PAGE}/embed`,
          emptyOutDir: true,
          cssCodeSplit: false,
          // No `lib`: Vite leaves the white space in what it takes for a library.
          rollupOptions: {
            input: "src/embed.ts",
            preserveEntrySignatures: "strict",
            output: { inlineDynamicImports: true, entryFileNames: "embed.js", assetFileNames: "embed[extname]" },
          },
          copyPublicDir: false,
        }
      : { outDir: PAGE, emptyOutDir: true, assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  test: { include: ["src/**/*.test.ts"] },
}));
