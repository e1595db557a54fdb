// Gumbel noise of tokens, in vectors. Included by native_kernel.h once per instruction set: no
// guard.

// The upper halves of products, as without a sign.
INLINE Ints high_product(Ints a, uint32_t b) {
#if VECTOR_BYTES == 64
  const __m512i factor = _mm512_set1_epi32((int32_t)b);
  const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  return (Ints)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif VECTOR_BYTES == 32
  const __m256i factor = _mm256_set1_epi32((int32_t)b);
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  return (Ints)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
  for (int i = 0; i < WIDTH; ++i) a[i] = uint64_t{(uint32_t)a[i]} * b >> 32;
  return a;
#endif
}

// Philox4x32-10 (Salmon et al. 2011): the bits of 4 * WIDTH tokens from 4 * counter on, in order.
INLINE void random_bits(const Draw& draw, uint32_t counter, int32_t* bits) {
  constexpr int GROUPS = WIDTH / 4;  // counters whose words one vector holds in the end
  Ints x0 = splat((int32_t)counter) + lane_numbers() % 4 * GROUPS + lane_numbers() / 4;
  Ints x1 = splat((int32_t)draw.position), x2 = splat((int32_t)draw.step), x3 = {};
  uint32_t k0 = (uint32_t)draw.seed, k1 = (uint32_t)(draw.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Ints a = high_product(x0, 0xD2511F53u), b = high_product(x2, 0xCD9E8D57u);
    const Ints low_a = x0 * (int32_t)0xD2511F53u, low_b = x2 * (int32_t)0xCD9E8D57u;
    x0 = b ^ x1 ^ splat((int32_t)k0);
    x2 = a ^ x3 ^ splat((int32_t)k1);
    x1 = low_b;
    x3 = low_a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // Of each four lanes, rows become columns.
  const Ints lane = lane_numbers(), place = lane % 4, start = lane - place;
  const Ints from = (place & 1) * WIDTH + start + place / 2;
  const Ints pairs = (place & 1) + start + (place / 2) * WIDTH;
  const Ints low01 = __builtin_shuffle(x0, x1, from), high01 = __builtin_shuffle(x0, x1, from + 2);
  const Ints low23 = __builtin_shuffle(x2, x3, from), high23 = __builtin_shuffle(x2, x3, from + 2);
  store(bits, __builtin_shuffle(low01, low23, pairs));
  store(bits + WIDTH, __builtin_shuffle(low01, low23, pairs + 2));
  store(bits + 2 * WIDTH, __builtin_shuffle(high01, high23, pairs));
  store(bits + 3 * WIDTH, __builtin_shuffle(high01, high23, pairs + 2));
}

// n + log(1 + f) ln 2 for sqrt(1/2) <= 1 + f <= sqrt(2), to 2 ulp (Cephes, logf).
INLINE Floats log_near_one(Floats f, Floats n) {
  Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats square = f * f;
  p = p * f * square - n * 2.12194440e-4f - 0.5f * square;
  return f + p + n * 0.693359375f;
}

// x = 2^n (1 + f) with 1 + f near one, for positive normal numbers.
INLINE void split(Floats x, Floats& f, Floats& n) {
  const Ints up = ((Ints)x - 0x3f3504f3) >> 23;  // sqrt(1/2) and larger: 0
  f = (Floats)((Ints)x - (up << 23)) - 1.0f;
  n = __builtin_convertvector(up, Floats);
}

// (bits + 1/2) / 2^32 of integers without a sign, rounded once.
INLINE Floats unit(Ints bits) {
  const Floats high = __builtin_convertvector((bits >> 16) & 0xffff, Floats);
  const Floats low = __builtin_convertvector(bits & 0xffff, Floats);
  return (high * 65536.0f + (low + 0.5f)) * 0x1p-32f;
}

// -log(-log(1 - u)), from 22.9 at bits 0 down to -3.1. Of u and 1 - u, the small one keeps all its
// digits.
INLINE Floats gumbel(Ints bits) {
  const Floats u = unit(bits);
  Floats f, n;
  split(unit(~bits), f, n);
  const Ints small = u < 0.25f;
  const Floats w = -log_near_one(small ? -u : f, small ? Floats{} : n);
  split(w, f, n);
  return -log_near_one(f, n);
}
