variable "bucket" {
  description = "Name of the bucket that holds the roots."
  type        = string
}

variable "access" {
  description = "Who may read besides the trainer role: nobody (private), everybody (public), or everybody who pays for the traffic (requester-pays)."
  type        = string
  default     = "private"

  validation {
    condition     = contains(["private", "public", "requester-pays"], var.access)
    error_message = "access must be private, public or requester-pays."
  }
}

variable "versioning" {
  description = "Keep overwritten objects. A root is immutable and does not need it; it protects against mistakes."
  type        = bool
  default     = false
}

variable "noncurrent_days" {
  description = "Days after which an overwritten object is removed, with versioning."
  type        = number
  default     = 30
}

variable "expire_uploads_days" {
  description = "Days after which the parts of an interrupted upload are removed."
  type        = number
  default     = 7
}

variable "builder_principals" {
  description = "ARNs that may assume the builder role (write, never delete)."
  type        = list(string)
  default     = []
}

variable "trainer_principals" {
  description = "ARNs that may assume the trainer role (read only)."
  type        = list(string)
  default     = []
}

variable "cors_origins" {
  description = "Origins whose pages may read the bucket; empty for none."
  type        = list(string)
  default     = ["*"]
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
