/**
 * Two builds of one page: `vite build` makes the served page, split so that a view is fetched when it is opened;
 * `vite build --mode embed` makes one file, embed.js, for saved pages and notebooks.
 */
import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

const PAGE = "../src/saccade/explorer/page";
// Codecs that zarrita brings, 2 MB of them: no trace has the first two, and we have a zstd of our own (src/trace.ts).
const unused = fileURLToPath(new URL("src/source/codec.ts", import.meta.url));
const alias = { "numcodecs/blosc": unused, "numcodecs/lz4": unused, "numcodecs/zstd": unused };

export default defineConfig(({ mode }) => ({
  plugins: [svelte()],
  base: "./",
  resolve: { alias },
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
  // While one works on it: SACCADE=http://127.0.0.1:PORT npx vite, and the token of that address in ours.
  server: {
    proxy: {
      "/api": { target: process.env.SACCADE, changeOrigin: true, headers: { origin: process.env.SACCADE ?? "" } },
    },
  },
  test: { include: ["src/**/*.test.ts"] },
}));
