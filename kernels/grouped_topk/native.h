// Routing for operators that do more than route.
#pragma once
#include <cstdint>
#include <optional>

#include <ATen/core/Tensor.h>

#include "logits.h"

struct Options {
  int64_t experts, top_k, groups, kept, size, per_group;  // size = experts per group
  bool balanced, top2_sum, renormalize;
  Scoring scoring;
  const float* bias;   // or null
  const float* scale;  // or null
  float factor;
  const float* limit = nullptr;  // -inf where an expert is left out, 0 where not; or null
};

// The arguments of grouped_topk, unpacked, and the memory that they point to.
class Router {
 public:
  Router(const at::Tensor& logits, int64_t top_k, int64_t groups, int64_t kept, bool balanced,
         c10::string_view scoring_func, c10::string_view group_score,
         const std::optional<at::Tensor>& bias, bool renormalize, double factor,
         const std::optional<at::Tensor>& expert_scale);

  Options options;
  int64_t tokens;

  // Weights and experts of tokens begin to end - 1, to where those of token 0 would be.
  void route(int64_t begin, int64_t end, float* weights, int32_t* experts) const;

  // Tokens that are worth a thread.
  int64_t grain() const;

 private:
  at::Tensor logits_, bias_, scale_;
};
