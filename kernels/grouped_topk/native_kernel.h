// One thread's share of the tokens. Compiled once per instruction set (shared/per_isa.h).
//
// Floor per token: E * itemsize bytes read, 8 * top_k written, and a key for each expert (an
// exponential or a sigmoid), as two loops in bench/floors_loops.h. Measured at 16384 tokens on two
// cores of an AMD EPYC with AVX-512: 1.9 to 3.1 times that for 64/8/1 (columns), 3.0 to 3.6 times
// for DeepSeek-V3 (rows), where selecting 8 of the keys takes half of the time, ranking the groups
// and the sigmoids a fifth each: what is left of it is instructions, not waiting for memory.

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

INLINE Floats sum_of_exp(const Floats* x, int64_t n, Floats top) {
  Floats t[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) t[j] += exp_of_negative(x[i + j] - top);
  for (; i < n; ++i) t[0] += exp_of_negative(x[i] - top);
  return (t[0] + t[1]) + (t[2] + t[3]);
}

#include "native_columns.h"
#include "native_rows.h"

template <class T>
void route(const T* logits, int64_t stride, int64_t n, const Options& o, float* weights,
           int32_t* experts) {
  if (o.balanced && o.kept == o.groups && o.per_group <= FEW)
    route_columns(logits, stride, n, o, weights, experts);
  else
    route_rows(logits, stride, n, o, weights, experts);
}
