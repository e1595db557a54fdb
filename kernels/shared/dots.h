// Dot products of a few queries with many keys, in vectors. Included by kernels once per
// instruction set, after simd.h: no guard.

// A row of n numbers as float32, zeros behind it up to `padded`, which is whole vectors.
template <class T>
INLINE void stage(const T* row, int64_t n, float* to, int64_t padded) {
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) store(to + i, load(row + i));
  if (i < n) store(to + i, load_part(row + i, n - i, 0.0f)), i += WIDTH;
  for (; i < padded; i += WIDTH) store(to + i, Floats{});
}

// What is told to prefetch where there is nothing to.
struct Nothing {
  INLINE void ask() const {}
};

// Sums of WIDTH vectors, side by side: neighbours are added until each has one lane.
INLINE Floats sum_each(Floats* v) {
  Ints even, odd;
  for (int i = 0; i < WIDTH; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  for (int n = WIDTH; n > 1; n /= 2)
    for (int i = 0; i < n / 2; ++i)
      v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) +
             __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
  return v[0];
}

// Dot products of ROWS queries with the keys of n tokens, n rounded up to WIDTH / ROWS: (ROWS, n)
// in rows `stride` apart. `ahead` is told to prefetch, once for every vector of a key.
template <int ROWS, class K, class A>
INLINE void dots(const float* q, const K* const* k, int64_t width, int64_t n, float* s,
                 int64_t stride, A& ahead) {
  constexpr int TOKENS = WIDTH / ROWS;
  for (int64_t t = 0; t < n; t += TOKENS) {
    Floats sums[WIDTH] = {};
    for (int64_t i = 0; i < width; i += WIDTH)
      for (int j = 0; j < TOKENS; ++j) {
        ahead.ask();
        const Floats key = load(k[t + j] + i);
        for (int r = 0; r < ROWS; ++r) sums[r * TOKENS + j] += load(q + r * width + i) * key;
      }
    float all[WIDTH];
    store(all, sum_each(sums));
    for (int r = 0; r < ROWS; ++r) std::memcpy(s + r * stride + t, all + r * TOKENS, 4 * TOKENS);
  }
}
