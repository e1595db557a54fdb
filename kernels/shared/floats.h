// Tensors of 16 or 32 bits, in their type.
#pragma once
#include <ATen/core/Tensor.h>

// Calls f with a pointer to the values of x.
template <class F>
void with_floats(const char* name, const at::Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return f(x.const_data_ptr<float>());
    case at::kHalf:
      return f(x.const_data_ptr<at::Half>());
    case at::kBFloat16:
      return f(x.const_data_ptr<at::BFloat16>());
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, float16 or bfloat16, got ", x.dtype());
  }
}
