// The one file that knows torch: checks, allocation and launch of the kernels, as operators.
#include <Python.h>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <string>
#include <tuple>

#include "derive_tree.h"

namespace {

using DerivedTree = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// Numbers go into messages through std::to_string: a process that has loaded two C++ runtimes may
// crash in an ostream's number formatting.
void check_index_vector(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.scalar_type() == at::kInt, name, ": expected int32, got ",
              tensor.scalar_type());
  TORCH_CHECK(tensor.dim() == 1, name, ": expected one dimension, got ",
              std::to_string(tensor.dim()));
  TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor, got a strided one");
}

// Also the Meta kernel, so that what torch.compile expects cannot drift from what comes out.
DerivedTree allocate_derived_tree(
    const at::Tensor& parents, const at::Tensor& indptr, int64_t words) {
  check_index_vector("parents", parents);
  check_index_vector("indptr", indptr);
  TORCH_CHECK(indptr.device() == parents.device(), "indptr: expected on ", parents.device(),
              " as parents are, got ", indptr.device());
  TORCH_CHECK(words >= 0 && words <= kMaxInt32, "words: expected 0 to 2^31 - 1, got ",
              std::to_string(words));
  const auto num_nodes = parents.sym_size(0);
  const auto int32 = parents.options();
  return {at::empty_symint({num_nodes}, int32), at::empty_symint({num_nodes}, int32),
          at::empty_symint({num_nodes}, int32),
          at::empty_symint({num_nodes, words}, int32.dtype(at::kLong))};
}

DerivedTree derive_tree_cuda(const at::Tensor& parents, const at::Tensor& indptr, int64_t words) {
  auto derived = allocate_derived_tree(parents, indptr, words);
  auto& [depth, first_child, next_sibling, ancestor_bits] = derived;
  const int64_t num_nodes = parents.numel();
  const int64_t batch = indptr.numel() - 1;
  TORCH_CHECK(num_nodes <= kMaxInt32, "parents: expected at most 2^31 - 1 nodes, got ",
              std::to_string(num_nodes));
  TORCH_CHECK(batch >= 0 && batch < kMaxInt32, "indptr: expected 1 to 2^31 - 1 entries, got ",
              std::to_string(batch + 1));
  const c10::cuda::CUDAGuard guard(parents.device());
  C10_CUDA_CHECK(wanspec::derive_tree(
      parents.const_data_ptr<int32_t>(), indptr.const_data_ptr<int32_t>(),
      static_cast<int32_t>(batch), static_cast<int32_t>(num_nodes), static_cast<int32_t>(words),
      depth.mutable_data_ptr<int32_t>(), first_child.mutable_data_ptr<int32_t>(),
      next_sibling.mutable_data_ptr<int32_t>(), ancestor_bits.mutable_data_ptr<int64_t>(),
      c10::cuda::getCurrentCUDAStream()));
  return derived;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(wanspec, m) {
  m.def(
      "derive_tree_cuda(Tensor parents, Tensor indptr, int words) -> "
      "(Tensor depth, Tensor first_child, Tensor next_sibling, Tensor ancestor_bits)");
}

TORCH_LIBRARY_IMPL(wanspec, CUDA, m) { m.impl("derive_tree_cuda", &derive_tree_cuda); }

TORCH_LIBRARY_IMPL(wanspec, Meta, m) { m.impl("derive_tree_cuda", &allocate_derived_tree); }

// `import wanspec_kernels._C` loads this library, which registers the operators above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
