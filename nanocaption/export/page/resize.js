// A decoded picture -> what the encoder is given: the same bytes as nanocaption/data/fitting.py gives, whose names these
// are. A new pixel is a sum of old ones with weights of 16 bits, first across and then down, rounded to a byte each time.

const STRIP = 1 << 20; // pixels that are read at once: phones have pictures larger than their canvases

/** [height, width] that a picture is resized to, before it is cropped. spec: image_spec of config.json. */
export function resizedShape(height, width, spec) {
  const side = spec.resize;
  if (Array.isArray(side)) return side;
  if (!spec.crop) return [side, side];
  const shorter = Math.min(height, width);
  return [Math.floor(side * height / shorter), Math.floor(side * width / shorter)];
}

/** [left, top, right, bottom] of what the encoder sees of a picture, as fractions; with black borders below 0, above 1. */
export function seenPart(height, width, spec) {
  if (!spec.crop) return [0, 0, 1, 1];
  const shorter = Math.min(height, width);
  const lengths = Array.isArray(spec.resize) ? [...spec.resize].reverse()
    : [width, height].map(length => length / shorter * spec.resize);
  const [across, down] = lengths.map(length => spec.size / length);
  return [(1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2];
}

/** Uint8Array (S, S, 3). readRows(top, count): the RGBA bytes of so many rows. */
export function fitted(height, width, spec, readRows) {
  const [newHeight, newWidth] = resizedShape(height, width, spec);
  const across = planOf(width, newWidth, spec.interpolation), down = planOf(height, newHeight, spec.interpolation);
  const narrow = new Uint8Array(height * newWidth * 3), small = new Uint8Array(newHeight * newWidth * 3);
  const rows = Math.max(1, Math.floor(STRIP / width));
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    const strip = onWhite(readRows(top, count)), target = narrow.subarray(top * newWidth * 3);
    resample(strip, target, count, across, [width * 3, 3], [newWidth * 3, 3]);
  }
  resample(narrow, small, newWidth, down, [3, newWidth * 3], [3, newWidth * 3]);
  return spec.crop ? cropped(small, newHeight, newWidth, spec.size) : small;
}

/** (S, S, 3) -> Float32Array (3, S, S), normalised in steps of 32 bits as numpy does it. */
export function normalised(pixels, spec) {
  const area = pixels.length / 3, values = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(spec.mean[channel]), std = Math.fround(spec.std[channel]);
    const level = Float32Array.from({length: 256}, (_, i) => Math.fround(Math.fround(i / 255) - mean) / std);
    for (let i = 0; i < area; i++) values[channel * area + i] = level[pixels[3 * i + channel]];
  }
  return values;
}

/** RGBA laid on white -> RGB, as Pillow's alpha_composite rounds it. */
function onWhite(rgba) {
  const rgb = new Uint8Array(rgba.length / 4 * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    const alpha = rgba[from + 3], own = alpha << 7, white = (255 << 7) - own;
    for (let channel = 0; channel < 3; channel++) {
      const sum = rgba[from + channel] * own + 255 * white + (128 << 7);
      rgb[to + channel] = alpha === 255 ? rgba[from + channel] : ((sum >> 8) + sum) >> 15;
    }
  }
  return rgb;
}

/** Where each new pixel begins in the old ones, its weights, and by how many bits their sum is too large. */
function planOf(old, length, mode) {
  if (mode.startsWith("nearest") || old === length) return nearest(old, length, mode === "nearest" ? 0 : 0.5);
  const [kernel, reach] = mode === "bilinear" ? [linear, 1] : [cubic, 2];
  const scale = old / length, stretch = Math.max(scale, 1), support = reach * stretch;
  const taps = Math.min(old, 2 * Math.ceil(support) + 1);
  const starts = new Int32Array(length), exact = new Float64Array(length * taps);
  for (let i = 0; i < length; i++) {
    const centre = scale * (i + 0.5);
    starts[i] = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), old);
    const row = exact.subarray(i * taps, (i + 1) * taps);
    let total = 0;
    for (let place = starts[i]; place < end; place++) {
      total += row[place - starts[i]] = kernel((place - centre + 0.5) / stretch);
    }
    for (let tap = 0; tap < taps; tap++) row[tap] /= total;
  }
  const largest = exact.reduce((a, b) => Math.max(a, b), 0);
  let shift = 0;
  while (shift < 22 && Math.trunc(0.5 + largest * 2 ** (shift + 1)) < 2 ** 15) shift++;
  const weights = Int32Array.from(exact, weight => Math.trunc(weight * 2 ** shift + (weight < 0 ? -0.5 : 0.5)));
  return {starts, weights, taps, shift, last: old - 1};
}

function nearest(old, length, offset) {
  const scale = Math.fround(old / length);
  const starts = Int32Array.from({length}, (_, i) => Math.min(Math.trunc(Math.fround((i + offset) * scale)), old - 1));
  return {starts, weights: new Int32Array(length).fill(1), taps: 1, shift: 0, last: old - 1};
}

function linear(x) {
  return Math.max(1 - Math.abs(x), 0);
}

function cubic(x) {
  x = Math.abs(x);
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** Lines of old pixels -> lines of new ones. Each of `from` and `to`: [bytes to the next line, to the next pixel]. */
function resample(source, target, lines, plan, from, to) {
  const half = plan.shift ? 2 ** (plan.shift - 1) : 0;
  for (let i = 0; i < plan.starts.length; i++) {
    for (let line = 0; line < lines; line++) {
      let red = half, green = half, blue = half;
      for (let tap = 0; tap < plan.taps; tap++) {
        const weight = plan.weights[i * plan.taps + tap];
        const at = line * from[0] + Math.min(plan.starts[i] + tap, plan.last) * from[1];
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
      }
      const at = line * to[0] + i * to[1];
      target[at] = Math.max(0, Math.min(red >> plan.shift, 255));
      target[at + 1] = Math.max(0, Math.min(green >> plan.shift, 255));
      target[at + 2] = Math.max(0, Math.min(blue >> plan.shift, 255));
    }
  }
}

/** The middle of (height, width, 3), with black where it is too small. */
function cropped(pixels, height, width, size) {
  const result = new Uint8Array(size * size * 3);
  const [top, left] = [height, width].map(length => length < size ? -Math.floor((size - length) / 2)
    : Math.floor((length - size) / 2));
  for (let y = Math.max(0, -top); y < Math.min(size, height - top); y++) {
    const begin = Math.max(0, -left), end = Math.min(size, width - left), row = (y + top) * width + left;
    result.set(pixels.subarray((row + begin) * 3, (row + end) * 3), (y * size + begin) * 3);
  }
  return result;
}
