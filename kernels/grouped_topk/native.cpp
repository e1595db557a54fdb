// Grouped top-k routing on the CPU: unpacking, threads and registration; native_kernel.h computes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "isa.h"

namespace {

enum class Scoring { softmax, sigmoid, sqrt_softplus, identity };

struct Options {
  int64_t experts, top_k, groups, kept, size, per_group;  // size = experts per group
  bool balanced, top2_sum, renormalize;
  Scoring scoring;
  const float* bias;   // or null
  const float* scale;  // or null
  float factor;
};

constexpr float EPSILON = 1e-20f;

#define KERNEL "../grouped_topk/native_kernel.h"
#include "per_isa.h"

template <class T>
void route(const T* x, int64_t stride, int64_t n, const Options& o, float* weights,
           int32_t* experts) {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return avx512::route(x, stride, n, o, weights, experts);
  if (isa() == Isa::avx2) return avx2::route(x, stride, n, o, weights, experts);
#endif
  portable::route(x, stride, n, o, weights, experts);
}

Scoring scoring_of(std::string_view name) {
  if (name == "softmax") return Scoring::softmax;
  if (name == "sigmoid") return Scoring::sigmoid;
  if (name == "sqrt_softplus") return Scoring::sqrt_softplus;
  TORCH_CHECK_VALUE(name == "identity",
                    "scoring_func must be softmax, sigmoid, sqrt_softplus or identity, got ", name);
  return Scoring::identity;
}

std::tuple<at::Tensor, at::Tensor> grouped_topk(const at::Tensor& logits, int64_t top_k,
                                                int64_t groups, int64_t kept, bool balanced,
                                                c10::string_view scoring_func,
                                                c10::string_view group_score,
                                                const std::optional<at::Tensor>& bias,
                                                bool renormalize, double factor,
                                                const std::optional<at::Tensor>& expert_scale) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  TORCH_CHECK_VALUE(logits.dim() == 2, "logits must be (tokens, experts)");
  const int64_t tokens = logits.size(0), experts = logits.size(1);
  TORCH_CHECK_VALUE(groups >= 1 && experts % groups == 0,
                    "num_expert_group must divide the experts");
  TORCH_CHECK_VALUE(1 <= kept && kept <= groups, "topk_group out of range");
  TORCH_CHECK_VALUE(1 <= top_k && top_k <= experts / groups * kept, "top_k out of range");
  TORCH_CHECK_VALUE(!balanced || top_k % kept == 0, "top_k must be a multiple of topk_group");

  const at::Tensor rows = experts == 1 || logits.stride(1) == 1 ? logits : logits.contiguous();
  at::Tensor vectors[2];
  const float* pointers[2] = {nullptr, nullptr};
  const std::optional<at::Tensor>* given[2] = {&bias, &expert_scale};
  for (int i = 0; i < 2; ++i) {
    if (!given[i]->has_value()) continue;
    TORCH_CHECK_VALUE((*given[i])->numel() == experts, "bias and expert_scale must be (experts,)");
    vectors[i] = (*given[i])->to(at::kFloat).contiguous();
    pointers[i] = vectors[i].const_data_ptr<float>();
  }
  const Options options{experts,
                        top_k,
                        groups,
                        kept,
                        experts / groups,
                        balanced ? top_k / kept : top_k,
                        balanced,
                        group_score == "top2_sum",
                        renormalize,
                        scoring_of(scoring_func),
                        pointers[0],
                        pointers[1],
                        static_cast<float>(factor)};

  at::Tensor weights = at::empty({tokens, top_k}, logits.options().dtype(at::kFloat));
  at::Tensor ids = at::empty({tokens, top_k}, logits.options().dtype(at::kInt));
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = ids.mutable_data_ptr<int32_t>();
  const int64_t stride = rows.stride(0);
  // A thread is worth waking for about 10 microseconds of work.
  const int64_t grain = std::max<int64_t>(1, 8192 / experts);
  const auto all_tokens = [&](const auto* x) {
    at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
      route(x + begin * stride, stride, end - begin, options, w + begin * top_k, e + begin * top_k);
    });
  };
  switch (rows.scalar_type()) {
    case at::kFloat:
      all_tokens(rows.const_data_ptr<float>());
      break;
    case at::kHalf:
      all_tokens(rows.const_data_ptr<at::Half>());
      break;
    case at::kBFloat16:
      all_tokens(rows.const_data_ptr<at::BFloat16>());
      break;
    default:
      TORCH_CHECK_TYPE(false, "logits must be float32, float16 or bfloat16, got ", rows.dtype());
  }
  return {std::move(weights), std::move(ids)};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("grouped_topk", grouped_topk); }
