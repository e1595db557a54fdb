// Grouped top-k routing on the CPU, forwards and backwards: unpacking, threads and registration;
// native_kernel.h computes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Float8_e4m3fn.h>
#include <torch/library.h>

#include "../grouped_topk/native.h"
#include "isa.h"
#include "outputs.h"
#include "ranges.h"

namespace {

// What the backward kernel needs to know.
struct Gradient {
  int64_t experts, top_k;
  Scoring scoring;
  bool renormalize;
  float factor;
  const float* scale;  // or null
};

#define KERNEL "../grouped_topk/native_kernel.h"
#include "per_isa.h"

// A thread is worth waking for about 10 microseconds of work.
int64_t tokens_per_thread(int64_t experts) { return std::max<int64_t>(1, 8192 / experts); }

// A vector over the experts as float32, or nothing.
at::Tensor per_expert(const std::optional<at::Tensor>& vector, int64_t experts) {
  if (!vector) return {};
  TORCH_CHECK_VALUE(vector->numel() == experts, "bias and expert_scale must be (experts,)");
  return vector->to(at::kFloat).contiguous();
}

const float* pointer(const at::Tensor& vector) {
  return vector.defined() ? vector.const_data_ptr<float>() : nullptr;
}

}  // namespace

Router::Router(const at::Tensor& logits, int64_t top_k, int64_t groups, int64_t kept, bool balanced,
               c10::string_view scoring_func, c10::string_view group_score,
               const std::optional<at::Tensor>& bias, bool renormalize, double factor,
               const std::optional<at::Tensor>& expert_scale) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits must be (tokens, experts)");
  const int64_t experts = logits.size(1);
  TORCH_CHECK_VALUE(groups >= 1 && experts % groups == 0,
                    "num_expert_group must divide the experts");
  TORCH_CHECK_VALUE(1 <= kept && kept <= groups, "topk_group out of range");
  TORCH_CHECK_VALUE(1 <= top_k && top_k <= experts / groups * kept, "top_k out of range");
  TORCH_CHECK_VALUE(!balanced || top_k % kept == 0, "top_k must be a multiple of topk_group");
  tokens = logits.size(0);
  logits_ = readable_rows(logits);
  bias_ = per_expert(bias, experts);
  scale_ = per_expert(expert_scale, experts);
  options = {experts,
             top_k,
             groups,
             kept,
             experts / groups,
             balanced ? top_k / kept : top_k,
             balanced,
             group_score == "top2_sum",
             renormalize,
             scoring_of(scoring_func),
             pointer(bias_),
             pointer(scale_),
             static_cast<float>(factor)};
}

void Router::route(int64_t begin, int64_t end, float* weights, int32_t* experts) const {
  const int64_t stride = logits_.stride(0), at = begin * options.top_k;
  with_logits(logits_, [&](const auto* x) {
    ON_BEST_ISA(
        route(x + begin * stride, stride, end - begin, options, weights + at, experts + at));
  });
}

int64_t Router::grain() const { return tokens_per_thread(options.experts); }

namespace {

std::tuple<at::Tensor, at::Tensor> grouped_topk(const at::Tensor& logits, int64_t top_k,
                                                int64_t groups, int64_t kept, bool balanced,
                                                c10::string_view scoring_func,
                                                c10::string_view group_score,
                                                const std::optional<at::Tensor>& bias,
                                                bool renormalize, double factor,
                                                const std::optional<at::Tensor>& expert_scale) {
  const Router router(logits, top_k, groups, kept, balanced, scoring_func, group_score, bias,
                      renormalize, factor, expert_scale);
  at::Tensor weights = empty({router.tokens, top_k}, at::kFloat);
  at::Tensor experts = empty({router.tokens, top_k}, at::kInt);
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  at::parallel_for(0, router.tokens, router.grain(),
                   [&](int64_t begin, int64_t end) { router.route(begin, end, w, e); });
  return {std::move(weights), std::move(experts)};
}

std::tuple<at::Tensor, at::Tensor> grouped_topk_backward(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& experts,
    c10::string_view scoring_func, bool renormalize, double factor,
    const std::optional<at::Tensor>& expert_scale) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && experts.dim() == 2 && grad.sizes() == experts.sizes() &&
                        experts.size(0) == logits.size(0),
                    "grad and experts must be (tokens, top_k), logits (tokens, experts)");
  const int64_t tokens = logits.size(0), count = logits.size(1), top_k = experts.size(1);
  const at::Tensor rows = readable_rows(logits), scale = per_expert(expert_scale, count);
  const at::Tensor upstream = grad.to(at::kFloat).contiguous();
  const at::Tensor ids = experts.contiguous();
  must_be_in_range<int32_t>("experts", ids, -1, count - 1, "-1 for padding");
  const Gradient options{
      count,         top_k, scoring_of(scoring_func), renormalize, static_cast<float>(factor),
      pointer(scale)};

  at::Tensor d_logits = empty({tokens, count}, logits.scalar_type());
  at::Tensor d_scale = empty({scale.defined() ? count : 0},
                             scale.defined() ? expert_scale->scalar_type() : at::kFloat);
  // Chunks do not depend on the number of threads, nor does the sum over them.
  const int64_t chunk = tokens_per_thread(count), chunks = (tokens + chunk - 1) / chunk;
  std::vector<double> partial(scale.defined() ? chunks * count : 0);
  const float* g = upstream.const_data_ptr<float>();
  const int32_t* e = ids.const_data_ptr<int32_t>();
  with_logits(rows, [&](const auto* x) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    T* dx = d_logits.mutable_data_ptr<T>();
    const int64_t stride = rows.stride(0);
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t begin = c * chunk, n = std::min(chunk, tokens - begin);
        ON_BEST_ISA(gradients(x + begin * stride, stride, n, options, g + begin * top_k,
                              e + begin * top_k, dx + begin * count,
                              partial.data() + (scale.defined() ? c * count : 0)));
      }
    });
  });
  if (scale.defined()) {
    at::Tensor sums = at::zeros({count}, logits.options().dtype(at::kDouble));
    double* s = sums.mutable_data_ptr<double>();
    for (int64_t i = 0; i < chunks * count; ++i) s[i % count] += partial[i];
    d_scale.copy_(sums);
  }
  return {std::move(d_logits), std::move(d_scale)};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) {
  m.impl("grouped_topk", grouped_topk);
  m.impl("grouped_topk_backward", grouped_topk_backward);
}
