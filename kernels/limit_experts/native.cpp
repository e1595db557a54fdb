// Routing within a budget of experts on the CPU: route, count the votes, route again among the
// most-voted.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../grouped_topk/native.h"
#include "outputs.h"

namespace {

// Indices begin to end - 1, those with most votes first, of equal ones the lowest.
std::vector<int64_t> by_votes(const std::vector<int64_t>& votes, int64_t begin, int64_t end) {
  std::vector<int64_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return votes[a] > votes[b]; });
  return order;
}

void most_voted(const std::vector<int64_t>& votes, const Options& o, int64_t budget, bool per_group,
                bool* kept) {
  const int64_t need = (o.top_k + o.kept - 1) / o.kept, each = per_group ? budget : need;
  std::fill(kept, kept + o.experts, false);
  for (int64_t g = 0; g < o.groups; ++g) {
    const auto order = by_votes(votes, g * o.size, (g + 1) * o.size);
    for (int64_t i = 0; i < each; ++i) kept[order[i]] = true;
  }
  if (per_group) return;
  int64_t left = budget - need * o.groups;
  for (const int64_t e : by_votes(votes, 0, o.experts))
    if (left > 0 && !kept[e]) kept[e] = true, --left;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> limit_experts(
    const at::Tensor& logits, int64_t top_k, int64_t groups, int64_t kept, bool balanced,
    c10::string_view scoring_func, c10::string_view group_score,
    const std::optional<at::Tensor>& bias, bool renormalize, double factor,
    const std::optional<at::Tensor>& expert_scale, int64_t budget, bool per_group) {
  Router router(logits, top_k, groups, kept, balanced, scoring_func, group_score, bias, renormalize,
                factor, expert_scale);
  const int64_t count = router.options.experts, need = (top_k + kept - 1) / kept;
  TORCH_CHECK_VALUE(per_group ? need <= budget && budget <= count / groups
                              : need * groups <= budget && budget <= count,
                    "budget out of range");
  at::Tensor weights = empty({router.tokens, top_k}, at::kFloat);
  at::Tensor experts = empty({router.tokens, top_k}, at::kInt);
  at::Tensor remaining = empty({count}, at::kBool);
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  const auto route = [&] {
    at::parallel_for(0, router.tokens, router.grain(),
                     [&](int64_t begin, int64_t end) { router.route(begin, end, w, e); });
  };
  route();
  std::vector<int64_t> votes(count);
  for (int64_t i = 0; i < router.tokens * top_k; ++i) ++votes[e[i]];
  bool* keep = remaining.mutable_data_ptr<bool>();
  most_voted(votes, router.options, budget, per_group, keep);
  std::vector<float> limit(count);
  for (int64_t i = 0; i < count; ++i)
    limit[i] = keep[i] ? 0.0f : -std::numeric_limits<float>::infinity();
  router.options.limit = limit.data();
  route();
  return {weights, experts, remaining};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("limit_experts", limit_experts); }
