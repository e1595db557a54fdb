// Scores of logits, in vectors. Included by kernels once per instruction set, after simd.h: no
// guard.

// Per thread, grown once: no allocation after the first call.
INLINE float* scratch(int64_t floats) {
  static thread_local std::vector<float> memory;
  if ((int64_t)memory.size() < floats + WIDTH) memory.resize(floats + WIDTH);
  const uintptr_t at = (uintptr_t)memory.data();
  return (float*)((at + VECTOR_BYTES - 1) & -(uintptr_t)VECTOR_BYTES);
}

INLINE Floats nan_last(Floats x) { return x == x ? x : splat(-INF); }

INLINE Floats scored(Floats x, Scoring scoring, Floats top, Floats sum) {
  switch (scoring) {
    case Scoring::softmax:
      return exp_of_negative(x - top) / sum;
    case Scoring::sigmoid:
      return sigmoid(x);
    case Scoring::sqrt_softplus:
      return square_root(softplus(x));
    default:
      return x;
  }
}

// Scores of n vectors; the switch stays outside the loops.
INLINE void score_all(const Floats* x, int64_t n, Scoring scoring, Floats top, Floats sum,
                      Floats* s) {
  if (scoring == Scoring::softmax)
    for (int64_t i = 0; i < n; ++i) s[i] = exp_of_negative(x[i] - top) / sum;
  else if (scoring == Scoring::sigmoid)
    for (int64_t i = 0; i < n; ++i) s[i] = sigmoid(x[i]);
  else
    for (int64_t i = 0; i < n; ++i) s[i] = scored(x[i], scoring, top, sum);
}

// Four accumulators: shorter chains, smaller rounding error.
INLINE Floats max_of(const Floats* x, int64_t n) {
  Floats m[4] = {splat(-INF), splat(-INF), splat(-INF), splat(-INF)};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) m[j] = maximum(m[j], x[i + j]);
  for (; i < n; ++i) m[0] = maximum(m[0], x[i]);
  return maximum(maximum(m[0], m[1]), maximum(m[2], m[3]));
}

// Blocks are added up in pairs: rounding errors grow with the length of a chain of additions.
INLINE Floats sum_of_exp(const Floats* x, int64_t n, Floats top) {
  constexpr int64_t BLOCK = 32;
  Floats sums[64];  // of 2^level blocks each, where the bit of the level is set in `blocks`
  int64_t blocks = 0;
  for (int64_t begin = 0; begin < n; begin += BLOCK, ++blocks) {
    const int64_t end = std::min(begin + BLOCK, n);
    Floats t[4] = {};
    int64_t i = begin;
    for (; i + 4 <= end; i += 4)
      for (int j = 0; j < 4; ++j) t[j] += exp_of_negative(x[i + j] - top);
    for (; i < end; ++i) t[0] += exp_of_negative(x[i] - top);
    Floats sum = (t[0] + t[1]) + (t[2] + t[3]);
    int level = 0;
    for (; blocks >> level & 1; ++level) sum += sums[level];
    sums[level] = sum;
  }
  Floats all{};
  for (int level = 0; blocks >> level; ++level)
    if (blocks >> level & 1) all += sums[level];
  return all;
}

// A row of n logits as float32 with NaN as -inf, readable in whole vectors, -inf past its end.
template <class T>
INLINE void load_row(const T* row, int64_t n, float* x) {
  const int64_t full = n / WIDTH * WIDTH;
  for (int64_t i = 0; i < full; i += WIDTH) store(x + i, nan_last(load(row + i)));
  if (full < n) store(x + full, nan_last(load_part(row + full, n - full, -INF)));
}

// Its largest and the sum of the exponentials, in all lanes.
INLINE void softmax_of_row(const float* x, int64_t n, Floats& top, Floats& sum) {
  const int64_t full = n / WIDTH, tail = n - full * WIDTH;
  top = splat(largest(max_of((const Floats*)x, full + (tail > 0))));
  // The padding of a row that is -inf throughout would count: inf - inf is no difference.
  Floats e = sum_of_exp((const Floats*)x, full, top);
  if (tail)
    e += lane_numbers() < splat((int32_t)tail) ? exp_of_negative(load(x + full * WIDTH) - top)
                                               : Floats{};
  sum = splat(total(e));
}
