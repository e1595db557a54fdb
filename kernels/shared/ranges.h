// Values of index tensors that no kernel may see: the message of ops/operator.py.
#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>

[[noreturn]] inline void out_of_range(const char* name, const at::Tensor& values, int64_t low,
                                      int64_t high, const char* meaning) {
  const auto [least, most] = at::aminmax(values);
  TORCH_CHECK_VALUE(false, name, " must be between ", low, " and ", high, " (", meaning,
                    "), got values from ", least.item<int64_t>(), " to ", most.item<int64_t>());
}

// One comparison for both bounds.
template <class I>
inline bool outside(I value, int64_t low, int64_t high) {
  return static_cast<uint64_t>(static_cast<int64_t>(value) - low) >
         static_cast<uint64_t>(high - low);
}

template <class I>
void must_be_in_range(const char* name, const at::Tensor& values, int64_t low, int64_t high,
                      const char* meaning) {
  const I* v = values.const_data_ptr<I>();
  bool bad = false;
  for (int64_t i = 0; i < values.numel(); ++i) bad |= outside(v[i], low, high);
  if (bad) out_of_range(name, values, low, high, meaning);
}
