// Compiles the header named by KERNEL once per instruction set, each time in a namespace of its
// own:
//
//     #define KERNEL "../grouped_topk/native_kernel.h"
//     #include "per_isa.h"
//
// Standard headers must have been included before: they may not land in these namespaces. Lambdas
// in templates lose the target (they are instantiated at the end of the file), so kernels have
// none.
#define INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,f16c")
namespace avx512 {
#define VECTOR_BYTES 64
#include "simd.h"
#include KERNEL
#undef VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define VECTOR_BYTES 32
#include "simd.h"
#include KERNEL
#undef VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace portable {
#define VECTOR_BYTES 16
#include "simd.h"
#include KERNEL
#undef VECTOR_BYTES
}  // namespace portable

// ON_BEST_ISA(f(x)) is f(x) of the namespace whose instructions this machine has.
#if defined(__x86_64__)
#define ON_BEST_ISA(call) \
  (isa() == Isa::avx512 ? avx512::call : isa() == Isa::avx2 ? avx2::call : portable::call)
#else
#define ON_BEST_ISA(call) portable::call
#endif
#undef INLINE
#undef KERNEL
