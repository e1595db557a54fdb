// Weights of experts that are known already, from the logits. WIDTH tokens at a time, a token per
// lane. Floor per token: top_k scattered logits read and as many weights written; for softmax the
// whole row.
#include "scores.h"

template <class T>
void weigh(const T* logits, int64_t stride, int64_t n, const Weighing& o, const int32_t* experts,
           float* weights) {
  const bool softmax = o.scoring == Scoring::softmax;
  const int64_t padded = (o.experts + WIDTH - 1) / WIDTH * WIDTH, k_lanes = o.top_k * WIDTH;
  float *x = scratch(padded + k_lanes), *p = x + padded;
  for (int64_t t = 0; t < n; t += WIDTH) {
    const int64_t lanes = std::min<int64_t>(WIDTH, n - t);
    float tops[WIDTH] = {}, sums[WIDTH] = {};
    for (int64_t lane = 0; lane < WIDTH; ++lane) {
      const int64_t from = std::min(t + lane, n - 1);  // lanes past n repeat the last token
      const T* row = logits + from * stride;
      if (softmax) {
        Floats top, sum;
        load_row(row, o.experts, x);
        softmax_of_row(x, o.experts, top, sum);
        tops[lane] = top[0];
        sums[lane] = sum[0];
      }
      for (int64_t k = 0; k < o.top_k; ++k)
        p[k * WIDTH + lane] = row[std::max(experts[from * o.top_k + k], 0)];
    }
    const Floats top = load(tops), sum = load(sums);
    Floats all{};
    for (int64_t k = 0; k < o.top_k; ++k) {
      int32_t chosen[WIDTH];
      for (int64_t lane = 0; lane < WIDTH; ++lane)
        chosen[lane] = experts[std::min(t + lane, n - 1) * o.top_k + k];
      Floats w = scored(nan_last(load(p + k * WIDTH)), o.scoring, top, sum);
      w = load(chosen) < 0 ? Floats{} : w;
      all += w;
      store(p + k * WIDTH, w);
    }
    const Floats divisor = o.renormalize ? all + EPSILON : splat(1.0f);
    for (int64_t k = 0; k < k_lanes; k += WIDTH) store(p + k, load(p + k) / divisor * o.factor);
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t k = 0; k < o.top_k; ++k) weights[(t + lane) * o.top_k + k] = p[k * WIDTH + lane];
  }
}
