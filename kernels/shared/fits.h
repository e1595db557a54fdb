// What a direct call of an operator may not get wrong, or it would read what is not there.
#pragma once
#include <ATen/core/Tensor.h>

inline void must_fit(const char* name, const at::Tensor& x, at::IntArrayRef sizes,
                     at::ScalarType dtype) {
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, " must be ", sizes, ", got shape ", x.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == dtype, name, " must be ", dtype, ", got ", x.scalar_type());
}
