// A picture file -> its pixels as nanocaption/data/pictures.py reads them: upright, alpha on white, no colour profile.

import {fitted} from "./resize.js";

const MAX_PIXELS = 120e6, MAX_ASPECT = 20;

/** What the encoder is given of a picture, and its size: {pixels: Uint8Array (S, S, 3), width, height}. */
export async function readPicture(blob, spec) {
  if (!blob.size) throw new Error("the file is empty");
  const bitmap = await decoded(blob);
  try {
    const {width, height} = bitmap;
    if (width * height > MAX_PIXELS) throw new Error(`it has ${width} x ${height} pixels, above 120 million`);
    if (Math.max(width, height) > MAX_ASPECT * Math.min(width, height)) {
      throw new Error(`${width} x ${height} is too long a shape, above ${MAX_ASPECT} : 1`);
    }
    const strip = stripsOf(bitmap);
    let pixels = fitted(height, width, spec, strip.rows);
    if (strip.sawAlpha()) {
      const rgba = await unmultiplied(blob, bitmap), row = width * 4;
      const exact = rgba && fitted(height, width, spec, (top, count) => rgba.subarray(top * row, (top + count) * row));
      if (exact?.every((level, i) => Math.abs(level - pixels[i]) <= 2)) pixels = exact; // else one of them was turned
    }
    return {pixels, width, height};
  } finally {
    bitmap.close();
  }
}

async function decoded(blob) {
  try {
    return await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch {
    throw new Error("it is no picture that this browser can read");
  }
}

/** Rows of a picture by way of a small canvas: phones have pictures that are larger than their largest canvas. */
function stripsOf(bitmap) {
  let context = null, alpha = false;
  const rows = (top, count) => {
    context ??= new OffscreenCanvas(bitmap.width, count).getContext("2d", {willReadFrequently: true});
    context.clearRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, top, bitmap.width, count, 0, 0, bitmap.width, count);
    const data = context.getImageData(0, 0, bitmap.width, count).data;
    for (let i = 3; i < data.length && !alpha; i += 4) alpha = data[i] < 255;
    return data;
  };
  return {rows, sawAlpha: () => alpha};
}

/**
 * The RGBA of a picture with alpha. A canvas holds colours multiplied by their alpha and rounded, which is one level
 * off; browsers that decode without it (WebCodecs) give what Pillow gives. null where it has none.
 */
async function unmultiplied(blob, {width, height}) {
  if (typeof ImageDecoder === "undefined" || !await ImageDecoder.isTypeSupported(blob.type)) return null;
  const decoder = new ImageDecoder({data: blob.stream(), type: blob.type, premultiplyAlpha: "none", colorSpaceConversion: "none"});
  try {
    const {image} = await decoder.decode();
    const rgba = new Uint8Array(width * height * 4);
    const same = image.codedWidth === width && image.codedHeight === height;
    if (same) await image.copyTo(rgba, {format: "RGBA"});
    image.close();
    return same ? rgba : null;
  } catch {
    return null;
  } finally {
    decoder.close();
  }
}
