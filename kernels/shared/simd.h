// Vectors of floats in the compiler's own vector types. Included by per_isa.h once per instruction
// set, so it has no include guard and includes nothing.

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
constexpr int WIDTH = VECTOR_BYTES / 4;
constexpr float INF = std::numeric_limits<float>::infinity();

INLINE Floats splat(float x) { return x - Floats{}; }
INLINE Ints splat(int32_t x) { return x - Ints{}; }

INLINE Ints lane_numbers() {
  Ints r;
  for (int i = 0; i < WIDTH; ++i) r[i] = i;
  return r;
}

INLINE Floats load(const float* p) {
  Floats r;
  std::memcpy(&r, p, sizeof r);
  return r;
}

INLINE Ints load(const int32_t* p) {
  Ints r;
  std::memcpy(&r, p, sizeof r);
  return r;
}

// Widening is spelled out: GCC 12 makes several instructions of a conversion of vectors.
INLINE Floats load(const c10::BFloat16* p) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)),
                                   16);
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Floats)(__builtin_convertvector(h, Ints) << 16);
#endif
}

INLINE Floats load(const c10::Half* p) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Floats r;
  for (int i = 0; i < WIDTH; ++i) r[i] = static_cast<float>(p[i]);
  return r;
#endif
}

INLINE Floats load(const int8_t* p) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  Floats r;
  for (int i = 0; i < WIDTH; ++i) r[i] = p[i];
  return r;
#endif
}

// As halves they are 2^8 times too small, subnormals too; all ones but the sign is NaN.
INLINE Floats load(const c10::Float8_e4m3fn* p) {
#if VECTOR_BYTES == 64
  const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  const __m256i low = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
  const __m256i nan = _mm256_cmpeq_epi16(low, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(x, 7), 15);
  const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(low, 7));
  return (Floats)_mm512_cvtph_ps(half) * 256.0f;
#elif VECTOR_BYTES == 32
  const __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)p));
  const __m128i low = _mm_and_si128(x, _mm_set1_epi16(0x7f));
  const __m128i nan = _mm_cmpeq_epi16(low, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_srli_epi16(x, 7), 15);
  const __m128i half = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(low, 7));
  return (Floats)_mm256_cvtph_ps(half) * 256.0f;
#else
  Floats r;
  for (int i = 0; i < WIDTH; ++i) r[i] = static_cast<float>(p[i]);
  return r;
#endif
}

// 2 * WIDTH values, in an order that depends on their type alone.
template <class T>
INLINE void load_two(const T* p, Floats& a, Floats& b) {
  a = load(p);
  b = load(p + WIDTH);
}

#if VECTOR_BYTES == 64
INLINE void load_two(const c10::BFloat16* p, Floats& a, Floats& b) {
  const __m512i pairs = _mm512_loadu_si512(p);
  a = (Floats)_mm512_slli_epi32(pairs, 16);
  b = (Floats)_mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000));
}
#endif

template <class T>
INLINE Floats load_part(const T* p, int64_t n, float rest) {
  T part[WIDTH];
  std::memcpy((void*)part, p, n * sizeof(T));
  std::memset((void*)(part + n), 0, (WIDTH - n) * sizeof(T));
  return lane_numbers() < splat((int32_t)n) ? load(part) : splat(rest);
}

INLINE void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
INLINE void store(int32_t* p, Ints x) { std::memcpy(p, &x, sizeof x); }

// Rounded to nearest, ties to even; NaN stays one.
INLINE void store(c10::BFloat16* p, Floats x) {
  const Ints bits = (Ints)x, even = (bits >> 16) & 1;
  const Ints rounded = x == x ? (bits + 0x7fff + even) >> 16 : splat(0x7fc0);
  const Halves h = __builtin_convertvector(rounded, Halves);
  std::memcpy((void*)p, &h, sizeof h);
}

INLINE void store(c10::Half* p, Floats x) {
#if VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < WIDTH; ++i) p[i] = x[i];
#endif
}

INLINE void store_part(float* p, Floats x, int64_t n) {
#if VECTOR_BYTES == 64
  _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)x);
#else
  if (n == WIDTH)
    store(p, x);
  else
    for (int64_t i = 0; i < n; ++i) p[i] = x[i];
#endif
}

INLINE Floats gather(const float* table, Ints index) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_i32gather_ps((__m512i)index, table, 4);
#else
  float r[WIDTH];
  for (int i = 0; i < WIDTH; ++i) r[i] = table[index[i]];
  return load(r);
#endif
}

// The second operand where either is NaN, as the instructions of x86 do.
INLINE Floats maximum(Floats a, Floats b) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

INLINE Floats minimum(Floats a, Floats b) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// One bit per lane; 0 in lanes where either is NaN.
INLINE uint32_t bits_at_least(Floats a, Floats b) {
#if VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)(a >= b));
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)(a >= b));
#else
  uint32_t r = 0;
  for (int i = 0; i < WIDTH; ++i) r |= uint32_t{a[i] >= b[i]} << i;
  return r;
#endif
}

// Writes the lanes of x whose bit is set side by side; up to WIDTH values past them are
// overwritten.
template <class V, class T>
INLINE void store_lanes(T* p, V x, uint32_t which) {
#if VECTOR_BYTES == 64
  const __m512i packed = _mm512_maskz_compress_epi32(which, (__m512i)x);
  std::memcpy(p, &packed, sizeof packed);
#else
  for (; which; which &= which - 1) *p++ = x[__builtin_ctz(which)];
#endif
}

INLINE Floats square_root(Floats x) {
#if VECTOR_BYTES == 64
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif VECTOR_BYTES == 32
  return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (Floats)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < WIDTH; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

INLINE Floats absolute(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }

// Butterfly: lane i with lane i ^ distance.
template <class V>
INLINE V swap_lanes(V x, int distance) {
  return __builtin_shuffle(x, lane_numbers() ^ distance);
}

INLINE float largest(Floats x) {
  for (int d = WIDTH / 2; d; d /= 2) x = maximum(x, swap_lanes(x, d));
  return x[0];
}

INLINE float total(Floats x) {
  for (int d = WIDTH / 2; d; d /= 2) x += swap_lanes(x, d);
  return x[0];
}

// exp(x) for -104 <= x <= 0 to 1 ulp, 0 at -104; NaN for NaN.
// x = n ln 2 + r, exp(r) = 1 + r + r^2 p(r) with p fitted to |r| <= ln(2) / 2.
INLINE Floats exp_between(Floats x) {
  const float shift = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  const Floats n = (x * 1.44269504f + shift) - shift;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.381453971e-3f + 8.368745315e-3f;
  p = p * r + 4.166839081e-2f;
  p = p * r + 1.666652040e-1f;
  p = p * r + 4.999999343e-1f;
  p = p * (r * r) + r + 1.0f;
#if VECTOR_BYTES == 64
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // In two steps, for results below 2^-126.
  const Ints power = __builtin_convertvector(n, Ints), half = power >> 1;
  return p * (Floats)((half + 127) << 23) * (Floats)((power - half + 127) << 23);
#endif
}

// exp(x) for x <= 0; 1 for NaN, which here is inf - inf: no difference.
INLINE Floats exp_of_negative(Floats x) {
  return exp_between(maximum(minimum(x, Floats{}), splat(-104.0f)));
}

INLINE Floats sigmoid(Floats x) {
  const Floats e = exp_of_negative(-absolute(x));
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

// log(1 + exp(x)) = max(x, 0) + log1p(e), e = exp(-|x|); log1p(e) = 2 artanh(e / (2 + e)).
INLINE Floats softplus(Floats x) {
  const Floats e = exp_of_negative(-absolute(x));
  const Floats t = e / (2.0f + e), u = t * t;
  Floats p = u * (1.0f / 15) + 1.0f / 13;
  p = p * u + 1.0f / 11;
  p = p * u + 1.0f / 9;
  p = p * u + 1.0f / 7;
  p = p * u + 1.0f / 5;
  p = p * u + 1.0f / 3;
  p = p * u + 1.0f;
  return maximum(x, Floats{}) + 2.0f * t * p;
}

// Rows of a WIDTH x WIDTH block become columns, by log2(WIDTH) perfect shuffles.
INLINE void transpose(Floats* rows) {
  Ints low, high;
  for (int i = 0; i < WIDTH; ++i) {
    low[i] = i / 2 + (i % 2) * WIDTH;
    high[i] = low[i] + WIDTH / 2;
  }
  for (int step = 1; step < WIDTH; step *= 2) {
    Floats shuffled[WIDTH];
    for (int i = 0; i < WIDTH / 2; ++i) {
      shuffled[2 * i] = __builtin_shuffle(rows[i], rows[i + WIDTH / 2], low);
      shuffled[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + WIDTH / 2], high);
    }
    for (int i = 0; i < WIDTH; ++i) rows[i] = shuffled[i];
  }
}
