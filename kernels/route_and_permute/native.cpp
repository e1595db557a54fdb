// Routing and permutation on the CPU: experts are counted while they are routed, block by block,
// and the rows are placed in a second pass.
#include <algorithm>
#include <tuple>

#include <torch/library.h>

#include "../grouped_topk/native.h"
#include "outputs.h"
#include "../permute/native.h"

namespace {

constexpr int64_t BLOCK = 1024;  // tokens: what was routed is still in the second-level cache

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> route_and_permute(
    const at::Tensor& logits, int64_t top_k, int64_t groups, int64_t kept, bool balanced,
    c10::string_view scoring_func, c10::string_view group_score,
    const std::optional<at::Tensor>& bias, bool renormalize, double factor,
    const std::optional<at::Tensor>& expert_scale) {
  const Router router(logits, top_k, groups, kept, balanced, scoring_func, group_score, bias,
                      renormalize, factor, expert_scale);
  at::Tensor weights = empty({router.tokens, top_k}, at::kFloat);
  at::Tensor experts = empty({router.tokens, top_k}, at::kInt);
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  Permuter rows(router.tokens, top_k, router.options.experts, router.grain());
  rows.for_chunks([&](int64_t c) {
    for (int64_t t = rows.begin(c); t < rows.begin(c + 1); t += BLOCK) {
      const int64_t end = std::min(t + BLOCK, rows.begin(c + 1));
      router.route(t, end, w, e);
      rows.count(c, e + t * top_k, end - t);
    }
  });
  rows.settle();
  rows.place_all(e);
  return {weights, experts, rows.source, rows.slot_of, rows.offsets};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("route_and_permute", route_and_permute); }
