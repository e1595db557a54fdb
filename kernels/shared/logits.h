// Logits as tensors, and their scores by name.
#pragma once
#include <string_view>

#include <ATen/core/Tensor.h>

#include "floats.h"

enum class Scoring { softmax, sigmoid, sqrt_softplus, identity };

constexpr float EPSILON =
    1e-20f;  // keeps the renormalised weights of an all-zero selection at zero

inline Scoring scoring_of(std::string_view name) {
  if (name == "softmax") return Scoring::softmax;
  if (name == "sigmoid") return Scoring::sigmoid;
  if (name == "sqrt_softplus") return Scoring::sqrt_softplus;
  TORCH_CHECK_VALUE(name == "identity",
                    "scoring_func must be softmax, sigmoid, sqrt_softplus or identity, got ", name);
  return Scoring::identity;
}

// Rows whose entries lie side by side.
inline at::Tensor readable_rows(const at::Tensor& logits) {
  return logits.size(1) <= 1 || logits.stride(1) == 1 ? logits : logits.contiguous();
}

// Calls f with a pointer to the logits, in their type.
template <class F>
void with_logits(const at::Tensor& logits, const F& f) {
  with_floats("logits", logits, f);
}
