// The one file that knows torch: checks, allocation and launch of the kernels, as operators.
#include <Python.h>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "attention/tree_attention.h"
#include "derive_tree.h"
#include "verify.h"

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

wanspec::VerifyOutputs outputs_of(
    const at::Tensor& token_ids, const at::Tensor& num_accepted, const at::Tensor& accepted_nodes,
    const at::Tensor& status) {
  return {token_ids.mutable_data_ptr<int32_t>(), num_accepted.mutable_data_ptr<int32_t>(),
          accepted_nodes.mutable_data_ptr<int32_t>(), status.mutable_data_ptr<int32_t>()};
}

// The caller has checked shapes, strides and devices; a pointer of another dtype is refused here.
wanspec::VerifyInputs inputs_of(
    const at::Tensor& logits, const std::optional<at::Tensor>& token_bitmask,
    const at::Tensor& token_ids, const at::Tensor& indptr, const at::Tensor& positions,
    const at::Tensor& temperature, const at::Tensor& top_k, const at::Tensor& top_p,
    const at::Tensor& min_p, const at::Tensor& seed, int64_t max_depth) {
  const auto dtype = logits.scalar_type();
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kFloat,
              "target_logits: expected bfloat16, float16 or float32, got ", dtype);
  using wanspec::LogitType;
  wanspec::VerifyInputs in{};
  in.logits = logits.const_data_ptr();
  in.logit_type = dtype == at::kBFloat16 ? LogitType::kBFloat16
                  : dtype == at::kHalf   ? LogitType::kFloat16
                                         : LogitType::kFloat32;
  in.row_stride = logits.stride(0);
  if (token_bitmask) {
    in.token_bitmask = token_bitmask->const_data_ptr<int32_t>();
    in.bitmask_words = token_bitmask->size(1);
  }
  in.token_ids = token_ids.const_data_ptr<int32_t>();
  in.indptr = indptr.const_data_ptr<int32_t>();
  in.positions = positions.const_data_ptr<int64_t>();
  in.temperature = temperature.const_data_ptr<float>();
  in.top_k = top_k.const_data_ptr<int32_t>();
  in.top_p = top_p.const_data_ptr<float>();
  in.min_p = min_p.const_data_ptr<float>();
  in.seed = seed.const_data_ptr<int64_t>();
  in.batch = static_cast<int32_t>(indptr.numel() - 1);
  in.vocab = static_cast<int32_t>(logits.size(1));
  in.max_depth = static_cast<int32_t>(max_depth);
  return in;
}

void check_launch(const char* kernel, cudaError_t error, const at::Tensor& logits) {
  TORCH_CHECK(error != cudaErrorInvalidConfiguration, kernel,
              ": expected rows that a thread-block cluster of this device can hold, got ",
              std::to_string(logits.size(1)), " logits of ",
              std::to_string(logits.element_size()), " bytes");
  C10_CUDA_CHECK(error);
}

void verify_match_cuda(
    const at::Tensor& out_token_ids, const at::Tensor& out_num_accepted,
    const at::Tensor& out_accepted_nodes, const at::Tensor& out_status, const at::Tensor& logits,
    const std::optional<at::Tensor>& token_bitmask, const at::Tensor& token_ids,
    const at::Tensor& parents, const at::Tensor& indptr, const at::Tensor& positions,
    const at::Tensor& temperature, const at::Tensor& top_k, const at::Tensor& top_p,
    const at::Tensor& min_p, const at::Tensor& seed, int64_t max_depth, int64_t cluster) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const auto error = wanspec::verify_match(
      outputs_of(out_token_ids, out_num_accepted, out_accepted_nodes, out_status),
      inputs_of(logits, token_bitmask, token_ids, indptr, positions, temperature, top_k, top_p,
                min_p, seed, max_depth),
      parents.const_data_ptr<int32_t>(), static_cast<int32_t>(cluster),
      c10::cuda::getCurrentCUDAStream());
  check_launch("verify_match", error, logits);
}

void verify_rejection_cuda(
    const at::Tensor& out_token_ids, const at::Tensor& out_num_accepted,
    const at::Tensor& out_accepted_nodes, const at::Tensor& out_status, const at::Tensor& logits,
    const std::optional<at::Tensor>& token_bitmask, const at::Tensor& token_ids,
    const at::Tensor& indptr, const at::Tensor& draw_indptr, const at::Tensor& draw_children,
    const at::Tensor& draw_rows, const at::Tensor& draft_token_ids, const at::Tensor& draft_weights,
    const at::Tensor& replacement, int64_t max_rows, const at::Tensor& positions,
    const at::Tensor& temperature, const at::Tensor& top_k, const at::Tensor& top_p,
    const at::Tensor& min_p, const at::Tensor& seed, int64_t max_depth, int64_t cluster) {
  const int64_t support = draft_token_ids.size(1);
  TORCH_CHECK(max_rows * support <= wanspec::kMaxEntries, "draft: expected at most ",
              std::to_string(wanspec::kMaxEntries), " entries a node, got ",
              std::to_string(max_rows), " rows of ", std::to_string(support));
  const c10::cuda::CUDAGuard guard(logits.device());
  const wanspec::DrawInputs draws{
      draw_indptr.const_data_ptr<int32_t>(),     draw_children.const_data_ptr<int32_t>(),
      draw_rows.const_data_ptr<int32_t>(),       draft_token_ids.const_data_ptr<int32_t>(),
      draft_weights.const_data_ptr<int32_t>(),   replacement.const_data_ptr<bool>(),
      static_cast<int32_t>(support)};
  const auto error = wanspec::verify_rejection(
      outputs_of(out_token_ids, out_num_accepted, out_accepted_nodes, out_status),
      inputs_of(logits, token_bitmask, token_ids, indptr, positions, temperature, top_k, top_p,
                min_p, seed, max_depth),
      draws, static_cast<int32_t>(cluster), c10::cuda::getCurrentCUDAStream());
  check_launch("verify_rejection", error, logits);
}

// The caller has checked shapes, strides and devices.
at::Tensor tree_attention_cuda(
    const at::Tensor& query, const at::Tensor& k_pages, const at::Tensor& v_pages,
    const at::Tensor& page_table, const at::Tensor& context_lens, const at::Tensor& indptr,
    const at::Tensor& ancestor_bits, int64_t max_nodes, double scale) {
  const auto dtype = query.scalar_type();
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kHalf,
              "query: expected bfloat16 or float16, got ", dtype);
  const c10::cuda::CUDAGuard guard(query.device());
  const auto dim = static_cast<int32_t>(query.size(2));
  at::Tensor out = at::empty(query.sizes(), query.options());
  const auto bytes = static_cast<int64_t>(wanspec::tree_attention_workspace_bytes(dim));
  at::Tensor workspace = at::empty({bytes}, query.options().dtype(at::kByte));
  wanspec::TreeAttentionInputs in{};
  in.out = out.mutable_data_ptr();
  in.workspace = workspace.mutable_data_ptr();
  in.query = query.const_data_ptr();
  in.k_pages = k_pages.const_data_ptr();
  in.v_pages = v_pages.const_data_ptr();
  in.page_table = page_table.const_data_ptr<int32_t>();
  in.context_lens = context_lens.const_data_ptr<int32_t>();
  in.indptr = indptr.const_data_ptr<int32_t>();
  in.ancestor_bits = ancestor_bits.const_data_ptr<int64_t>();
  in.query_node_stride = query.stride(0);
  in.query_head_stride = query.stride(1);
  in.k_page_stride = k_pages.stride(0);
  in.k_slot_stride = k_pages.stride(1);
  in.k_head_stride = k_pages.stride(2);
  in.v_page_stride = v_pages.stride(0);
  in.v_slot_stride = v_pages.stride(1);
  in.v_head_stride = v_pages.stride(2);
  in.page_table_stride = page_table.stride(0);
  in.num_nodes = static_cast<int32_t>(query.size(0));
  in.heads = static_cast<int32_t>(query.size(1));
  in.kv_heads = static_cast<int32_t>(k_pages.size(2));
  in.dim = dim;
  in.num_pages = static_cast<int32_t>(k_pages.size(0));
  in.page_size = static_cast<int32_t>(k_pages.size(1));
  in.batch = static_cast<int32_t>(context_lens.numel());
  in.max_nodes = static_cast<int32_t>(max_nodes);
  in.words = static_cast<int32_t>(ancestor_bits.size(1));
  in.scale = static_cast<float>(scale);
  in.type = dtype == at::kBFloat16 ? wanspec::AttentionType::kBFloat16
                                   : wanspec::AttentionType::kFloat16;
  C10_CUDA_CHECK(wanspec::tree_attention(in, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(wanspec, m) {
  m.def(
      "derive_tree_cuda(Tensor parents, Tensor indptr, int words) -> "
      "(Tensor depth, Tensor first_child, Tensor next_sibling, Tensor ancestor_bits)");
  // They fill outputs that wanspec::verify_match and verify_rejection, in Python, have allocated.
  m.def(
      "verify_match_cuda(Tensor(a!) out_token_ids, Tensor(b!) out_num_accepted, "
      "Tensor(c!) out_accepted_nodes, Tensor(d!) out_status, Tensor target_logits, "
      "Tensor? token_bitmask, Tensor token_ids, Tensor parents, Tensor indptr, Tensor positions, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, int max_depth, "
      "int cluster) -> ()");
  m.def(
      "verify_rejection_cuda(Tensor(a!) out_token_ids, Tensor(b!) out_num_accepted, "
      "Tensor(c!) out_accepted_nodes, Tensor(d!) out_status, Tensor target_logits, "
      "Tensor? token_bitmask, Tensor token_ids, Tensor indptr, Tensor draw_indptr, "
      "Tensor draw_children, Tensor draw_rows, Tensor draft_token_ids, Tensor draft_weights, "
      "Tensor replacement, int max_rows, Tensor positions, Tensor temperature, Tensor top_k, "
      "Tensor top_p, Tensor min_p, Tensor seed, int max_depth, int cluster) -> ()");
  // What wanspec::tree_attention, in Python, calls where the kernels serve.
  m.def(
      "tree_attention_cuda(Tensor query, Tensor k_pages, Tensor v_pages, Tensor page_table, "
      "Tensor context_lens, Tensor indptr, Tensor ancestor_bits, int max_nodes, float scale) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(wanspec, CUDA, m) {
  m.impl("derive_tree_cuda", &derive_tree_cuda);
  m.impl("verify_match_cuda", &verify_match_cuda);
  m.impl("verify_rejection_cuda", &verify_rejection_cuda);
  m.impl("tree_attention_cuda", &tree_attention_cuda);
}

TORCH_LIBRARY_IMPL(wanspec, Meta, m) { m.impl("derive_tree_cuda", &allocate_derived_tree); }

// `import wanspec_kernels._C` loads this library, which registers the operators above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                               nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
