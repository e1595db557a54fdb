// Norm, addition and norm of rows, in vectors. Included by native.cpp once per instruction set: no
// guard.

#include "scores.h"

constexpr int64_t BLOCK = 1024;  // squares that are added up in float32; blocks are in float64

// The first n numbers at x, zeros behind them.
template <class X>
INLINE Floats load_some(const X* x, int64_t n) {
  return n >= WIDTH ? load(x) : load_part(x, n, 0.0f);
}

template <class T>
INLINE void store_some(T* to, Floats x, int64_t n) {
  if (n >= WIDTH) return store(to, x);
  T part[WIDTH];
  store(part, x);
  std::memcpy((void*)to, part, n * sizeof(T));
}

// 1 / rms of n numbers.
template <class X>
INLINE float inverse_rms(const X* x, int64_t n, double eps) {
  double squares = 0;
  for (int64_t from = 0; from < n; from += BLOCK) {
    const int64_t end = std::min(from + BLOCK, n);
    Floats s[4] = {};
    int64_t i = from;
    for (; i + 4 * WIDTH <= end; i += 4 * WIDTH)
      for (int64_t j = 0; j < 4; ++j) {
        const Floats v = load(x + i + j * WIDTH);
        s[j] += v * v;
      }
    for (; i < end; i += WIDTH) {
      const Floats v = load_some(x + i, end - i);
      s[0] += v * v;
    }
    squares += total((s[0] + s[1]) + (s[2] + s[3]));
  }
  return static_cast<float>(1.0 / std::sqrt(squares / n + eps));
}

// A vector of r, n of whose lanes count, from what is normed and scaled with 1 / rms.
template <bool BRANCH, class V, class T, class W>
INLINE void add(const V* v, const T* residual, const W* post, float scale, float* row, T* r,
                int64_t n) {
  Floats x = load_some(post, n) * (load_some(v, n) * scale);
  if (BRANCH) x += load_some(residual, n);
  store(row, x);
  store_some(r, x, n);
}

// Rows first to last - 1 of n numbers each.
template <bool BRANCH, class T, class W>
void norm_add_norm(const T* y, const T* residual, const W* post, const W* next, double eps, T* r,
                   T* z, int64_t n, int64_t first, int64_t last) {
  float* row = scratch(n + WIDTH);  // the sum where that is normed, then r: not rounded
  for (int64_t at = first * n; at < last * n; at += n) {
    int64_t i = 0;
    if constexpr (BRANCH) {
      const float scale = inverse_rms(y + at, n, eps);
      for (; i + WIDTH <= n; i += WIDTH)
        add<true>(y + at + i, residual + at + i, post + i, scale, row + i, r + at + i, WIDTH);
      if (i < n)
        add<true>(y + at + i, residual + at + i, post + i, scale, row + i, r + at + i, n - i);
    } else {
      for (; i + WIDTH <= n; i += WIDTH) store(row + i, load(residual + at + i) + load(y + at + i));
      if (i < n) store(row + i, load_some(residual + at + i, n - i) + load_some(y + at + i, n - i));
      const float scale = inverse_rms(row, n, eps);
      for (i = 0; i + WIDTH <= n; i += WIDTH)
        add<false>(row + i, residual, post + i, scale, row + i, r + at + i, WIDTH);
      if (i < n) add<false>(row + i, residual, post + i, scale, row + i, r + at + i, n - i);
    }
    const float scale = inverse_rms(row, n, eps);
    for (i = 0; i + WIDTH <= n; i += WIDTH)
      store(z + at + i, load(next + i) * (load(row + i) * scale));
    if (i < n) store_some(z + at + i, load_some(next + i, n - i) * (load(row + i) * scale), n - i);
  }
}
