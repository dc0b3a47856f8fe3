// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/route_backward.cuh"

namespace conclave::kernels::cuda {
namespace {

// Calls body(how many experts a lane holds), a compile-time constant: registers cannot be indexed otherwise.
template <typename Body>
void with_experts_per_lane(int experts, const Body& body) {
  if (experts <= 32) {
    body(std::integral_constant<int, 1>{});
  } else if (experts <= 64) {
    body(std::integral_constant<int, 2>{});
  } else if (experts <= 128) {
    body(std::integral_constant<int, 4>{});
  } else if (experts <= 256) {
    body(std::integral_constant<int, 8>{});
  } else {
    body(std::integral_constant<int, 16>{});
  }
}

}  // namespace

void route(const Route& a, Stream stream) {
  with_experts_per_lane(a.shape.experts, [&](auto per_lane) {
    launch("route", route_kernel<per_lane()>,
           {chunks_of(a.shape), kRouteThreads, static_cast<size_t>(route_shared_bytes(a.shape))}, stream, a);
  });
  const int64_t numbers = (a.shape.sequences + 1) * a.shape.experts + 2;
  launch("route_totals", route_totals_kernel, shape_of_rows(numbers), stream, a);
}

void route_backward(const RouteBackward& a, Stream stream) {
  with_experts_per_lane(a.shape.experts, [&](auto per_lane) {
    launch("route_backward", route_backward_kernel<per_lane()>, shape_of_rows(a.shape.sequences * a.shape.length),
           stream, a);
  });
}

}  // namespace conclave::kernels::cuda
