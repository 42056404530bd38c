/** Stands where zarrita would load a codec that no array of ours has (vite.config.ts). */
export default {
  fromConfig(): never {
    throw new Error("this page unpacks no such chunks");
  },
};
