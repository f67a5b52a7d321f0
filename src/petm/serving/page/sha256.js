/** SHA-256 as 64 hexadecimal digits: what identifies an input, here and in the labels file. */

/** Returns the digest of a Uint8Array. */
export async function sha256(bytes) {
  // Browsers have crypto.subtle on this machine and behind HTTPS, but not for a page that came over plain HTTP.
  return globalThis.crypto.subtle ? hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))) : digest(bytes);
}

/** Returns the digest of a Uint8Array, by FIPS 180-4, without the browser's help. */
export function digest(bytes) {
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const words = new DataView(padded.buffer);
  words.setBigUint64(padded.length - 8, 8n * BigInt(bytes.length));
  const state = Uint32Array.from(START);
  const w = new Uint32Array(64);
  for (let offset = 0; offset < padded.length; offset += 64) {
    for (let t = 0; t < 16; t += 1) w[t] = words.getUint32(offset + 4 * t);
    for (let t = 16; t < 64; t += 1) w[t] = small1(w[t - 2]) + w[t - 7] + small0(w[t - 15]) + w[t - 16];
    let [a, b, c, d, e, f, g, h] = state;
    for (let t = 0; t < 64; t += 1) {
      const first = (h + large1(e) + ((e & f) ^ (~e & g)) + ROUNDS[t] + w[t]) | 0;
      const second = (large0(a) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [a, b, c, d, e, f, g, h] = [(first + second) | 0, a, b, c, (d + first) | 0, e, f, g];
    }
    [a, b, c, d, e, f, g, h].forEach((value, index) => (state[index] += value));
  }
  return [...state].map((word) => word.toString(16).padStart(8, "0")).join("");
}

const turn = (x, n) => (x >>> n) | (x << (32 - n));
const large0 = (x) => turn(x, 2) ^ turn(x, 13) ^ turn(x, 22);
const large1 = (x) => turn(x, 6) ^ turn(x, 11) ^ turn(x, 25);
const small0 = (x) => turn(x, 7) ^ turn(x, 18) ^ (x >>> 3);
const small1 = (x) => turn(x, 17) ^ turn(x, 19) ^ (x >>> 10);
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The first 64 primes, whose roots are the constants of the standard. */
const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n += 1) if (PRIMES.every((prime) => n % prime)) PRIMES.push(n);

/** The first 32 bits of the fraction of a prime's root of this order, exact in whole numbers. */
function fraction(prime, order) {
  const target = BigInt(prime) << BigInt(32 * order);
  let low = 0n;
  for (let bit = 1n << 40n; bit; bit >>= 1n) if ((low + bit) ** BigInt(order) <= target) low += bit;
  return Number(low & 0xffffffffn);
}

const START = PRIMES.slice(0, 8).map((prime) => fraction(prime, 2));
const ROUNDS = PRIMES.map((prime) => fraction(prime, 3));
