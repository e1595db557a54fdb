// Preloaded into a process: counts what is asked of malloc and its kin between two calls, in
// requests of at least a page, which leaves out Python's objects and the headers of tensors.
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static atomic_int counting;
static atomic_llong requests, bytes;

static void count(size_t size) {
  if (size < 4096 || !atomic_load(&counting)) return;
  atomic_fetch_add(&requests, 1);
  atomic_fetch_add(&bytes, size);
}

void start_counting(void) {
  atomic_store(&requests, 0);
  atomic_store(&bytes, 0);
  atomic_store(&counting, 1);
}

void stop_counting(long long* result) {
  atomic_store(&counting, 0);
  result[0] = atomic_load(&requests);
  result[1] = atomic_load(&bytes);
}

void* malloc(size_t size) {
  count(size);
  return __libc_malloc(size);
}

void* calloc(size_t n, size_t size) {
  count(n * size);
  return __libc_calloc(n, size);
}

void* realloc(void* old, size_t size) {
  count(size);
  return __libc_realloc(old, size);
}

void* memalign(size_t alignment, size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** result, size_t alignment, size_t size) {
  *result = memalign(alignment, size);
  return *result ? 0 : ENOMEM;
}
